"""What shows a person or a monitoring system how the pools are. Nothing here is imported or started unless asked for."""
