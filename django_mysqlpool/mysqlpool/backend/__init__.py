"""The Django half: the patch of Django's ``DatabaseWrapper``, its cursors, and the scopes that end with a request."""
