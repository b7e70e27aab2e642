from django.db import models


class Account(models.Model):
    """Something to read, to write, and to move money between."""

    name = models.CharField(max_length=100)
    balance = models.IntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.name}: {self.balance}"
