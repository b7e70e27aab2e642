# Two commands do everything, set-up included: make demo, make test.

SHELL := /bin/bash
PYTHON ?= python3
ARGS ?=
MINUTES ?= 10
DJANGO ?= 6.1
LABELS ?=
MODES ?= request transaction
PROCESSES ?= 1
VENV := .venv/bin/

# What tests and demo take the server from: devtools/server.py.
ifdef SERVER
export MYSQLPOOL_SERVER_PROGRAM := $(SERVER)
endif
ifdef SERVER_URL
export MYSQLPOOL_SERVER_URL := $(SERVER_URL)
endif

# Tests start hundreds of processes, each of which would compile the same modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-fast coverage soak django-suite benchmark benchmark-release benchmark-crowd benchmark-web benchmark-instructions benchmark-gate benchmark-scale lint docs clean

help:
	@echo 'make demo   the example site on both engines under load, then left running until Ctrl-C'
	@echo 'make test   the tests, against a private server that they start and stop'
	@echo 'make test-fast'
	@echo '            the unit tests, which need no server, in seconds'
	@echo 'make coverage'
	@echo '            the tests, and which lines and branches of the package they run'
	@echo 'make soak   processes of threads under random faults, and a ledger that must hold'
	@echo 'make django-suite'
	@echo '            the tests of Django itself on this engine, compared with the stock one'
	@echo 'make benchmark'
	@echo '            the cost of a request with one query, beside the other engines'
	@echo '            (with TLS too where SERVER= is a MySQL)'
	@echo 'make benchmark-release'
	@echo '            a connection held for a request, and held only while SQL runs'
	@echo 'make benchmark-crowd'
	@echo '            a thousand threads over ten connections, beside ten threads'
	@echo 'make benchmark-web'
	@echo '            requests per second under gunicorn and uvicorn, beside the other engines (needs wrk)'
	@echo 'make benchmark-instructions'
	@echo '            the instructions that a request costs the site, beside the other engines (needs valgrind)'
	@echo 'make benchmark-scale'
	@echo '            what one process can take: memory of each thing, crowds, cold start'
	@echo 'make benchmark-gate'
	@echo '            the instructions of a cycle in four forms; fails if they are not as expected'
	@echo 'make lint   ruff, mypy and import-linter'
	@echo 'make docs   the documentation, in docs/_build/html'
	@echo 'make clean  remove all that these made, .venv included'
	@echo
	@echo 'Each sets up what it needs first. Variables:'
	@echo '  ONCE=1                     make demo: end after the table'
	@echo '  ARGS="-x -k pool"          make test: arguments for pytest'
	@echo '  MINUTES=10 SEED=1234       make soak: for how long; and the order of the faults'
	@echo '  DJANGO=5.2 LABELS="backends schema" MODES=transaction PROCESSES=2'
	@echo '                             make django-suite: the version, the tests (all), the release modes'
	@echo '                             (both), and how many processes run the tests of each engine'
	@echo '  SERVER=/path/to/mysqld     the program of the private server (a mariadbd or mysqld;'
	@echo '                             otherwise the mariadbd of this machine)'
	@echo '  SERVER_URL=mysql://user:password@host:port'
	@echo '                             a server that exists, in place of a private one'
	@echo '  PYTHON=python3.13          the interpreter of .venv (made anew where it is another one)'

setup:
	@PYTHON='$(PYTHON)' bash devtools/bootstrap.sh $(FOR)

demo: FOR := demo
demo: setup
	@exec $(VENV)python -m devtools.demo $(if $(ONCE),--once)

# ARGS="-n 0 --pdb": in this process. COVERAGE=yes: leaves data of coverage behind.
test coverage: FOR := test
test: setup
	@exec $(VENV)$(if $(COVERAGE),coverage run,python) -m pytest --numprocesses=auto --dist=worksteal $(ARGS)

test-fast: setup
	@exec $(VENV)python -m pytest -q tests/unit $(ARGS)

coverage: setup
	@$(VENV)coverage erase
	@$(MAKE) --no-print-directory test COVERAGE=yes
	@$(VENV)coverage combine --quiet
	@$(VENV)coverage report

soak: setup
	@exec $(VENV)python -m devtools.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

django-suite: setup
	@exec $(VENV)python -m devtools.django_suite --django $(DJANGO) --processes $(PROCESSES) --modes $(MODES) -- $(LABELS)

benchmark: setup
	@exec $(VENV)python -m benchmarks.cycle $(ARGS)

benchmark-release: setup
	@exec $(VENV)python -m benchmarks.release $(ARGS)

benchmark-crowd: setup
	@exec $(VENV)python -m benchmarks.crowd $(ARGS)

benchmark-web: setup
	@exec $(VENV)python -m benchmarks.web $(ARGS)

benchmark-instructions: FOR := count
benchmark-instructions: setup
	@exec $(VENV)python -m benchmarks.instructions

benchmark-scale: setup
	@exec $(VENV)python -m benchmarks.scale

benchmark-gate: FOR := count
benchmark-gate: setup
	@exec $(VENV)python -m benchmarks.gate $(ARGS)

lint: setup
	$(VENV)ruff check .
	$(VENV)ruff format --check .
	$(VENV)mypy django_mysqlpool
	$(VENV)lint-imports

docs: setup
	$(VENV)sphinx-build -W docs docs/_build/html

clean:
	rm -rf .venv .demo .django-suite docs/_build build dist .pytest_cache .mypy_cache .ruff_cache .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
