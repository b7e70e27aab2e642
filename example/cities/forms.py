"""What visitors may send."""

from django import forms

from cities.models import Note


class NoteForm(forms.ModelForm):
    """A note about a city."""

    class Meta:
        model = Note
        fields = ["text"]
