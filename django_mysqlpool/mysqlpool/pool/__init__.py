"""The pool itself. It knows no wrapper of Django's, no settings, and no SQL text of the user's."""
