# make install     the environment, in .venv
# make demo        the whole way on the embedded demo set, in demo/
# make test        everything that checks the project
# make test-slow   the proofs that take minutes
# make clean       remove .venv and demo/
PYTHON ?= python3
VENV   := .venv
BIN    := $(abspath $(VENV))/bin
STAMP  := $(VENV)/.installed
# Two test processes with one thread each use two cores better than one process with two threads.
TEST_PROCESSES ?= 2

.PHONY: help install demo test lint types floors pytest test-slow clean

help:
	@sed -n 's/^# make/make/p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

demo: install
	mkdir -p demo
	cd demo && $(BIN)/dedetr prepare-data
	cd demo && $(BIN)/dedetr train --model dela-detr --out runs/demo --overwrite
	cd demo && $(BIN)/dedetr eval --checkpoint runs/demo
	cd demo && $(BIN)/dedetr predict images/ --checkpoint runs/demo --out vis/
	@echo "annotated pictures: demo/vis/"

test: lint types floors pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

floors: install
	$(BIN)/lint-imports

pytest: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n $(TEST_PROCESSES)

test-slow: install
	$(BIN)/pytest -m slow

clean:
	rm -rf $(VENV) demo
