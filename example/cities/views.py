"""Four views as sites have them: a list, a page, an endpoint, and a write in a transaction.

None of them knows that its connection comes from a pool.
"""

from django.db import transaction
from django.db.models import F
from django.http import JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST, require_safe

from cities.forms import NoteForm
from cities.models import City

PAGE_SIZE = 20


def find_cities(name="", country=""):
    """The biggest cities whose name begins like this, in this country."""
    cities = City.objects.select_related("country")
    if name:
        cities = cities.filter(name__istartswith=name)
    if country:
        cities = cities.filter(country=country)
    return cities[:PAGE_SIZE]


@require_safe
def search(request):
    """The front page: the world's biggest cities, or those that were searched for."""
    name = request.GET.get("q", "").strip()
    return render(request, "cities/search.html", {"name": name, "cities": find_cities(name)})


@require_safe
def city(request, pk):
    """A city's page, with the last notes of its visitors."""
    city = get_object_or_404(City.objects.select_related("country"), pk=pk)
    context = {"city": city, "notes": city.notes.all()[:PAGE_SIZE], "form": NoteForm()}
    return render(request, "cities/city.html", context)


@require_POST
def add_note(request, pk):
    """Write a note and count it. The lock on the city makes the two one step for every visitor."""
    form = NoteForm(request.POST)
    with transaction.atomic():
        city = get_object_or_404(City.objects.select_for_update(), pk=pk)
        if form.is_valid():
            city.notes.create(text=form.cleaned_data["text"])
            City.objects.filter(pk=pk).update(note_count=F("note_count") + 1)
    return redirect(city)


@require_safe
def api(request):
    """The same search for programs: ``/api/cities/?q=san&country=US``."""
    cities = find_cities(request.GET.get("q", ""), request.GET.get("country", ""))
    fields = ("id", "name", "country_id", "latitude", "longitude", "population", "timezone")
    return JsonResponse({"cities": list(cities.values(*fields))})
