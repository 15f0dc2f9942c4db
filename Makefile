# aufacs_nb: each target is the only command you need. The first one creates .venv and installs what is missing;
# afterwards nothing is installed again until settings.ini, setup.py or constraints.txt change.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The first Python >= 3.11 that really runs (a shim may exist without its interpreter). Yours: make PYTHON=/path/to/python test
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
            "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
# TORCH=cpu: PyTorch's own build for CPUs, a fraction of the download. uv knows where PyTorch keeps it; pip does not.
TORCH  ?=
# VERSIONS=lowest: the lowest versions that settings.ini allows, as CI's job `lowest` tests them. uv finds them; pip does not.
VERSIONS ?=
UV_OPTIONS := $(if $(filter cpu,$(TORCH)),--torch-backend=cpu) $(if $(filter lowest,$(VERSIONS)),--resolution=lowest-direct)
OUT    ?= demo_out
PORT   ?= 8866
# Processes that compute and never wait: one for each of two cores.
WORKERS ?= 2
# Processes that run notebooks or tests: one more, since these often wait, for a browser, a disk or a process they started.
TESTERS ?= 3
# JupyterLab would fetch news, and ask whether there is a newer one; nothing here speaks to other machines unasked.
QUIET_LAB := --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate
# Where the guard notes what notebooks tried to reach.
KNOCKS := $(CURDIR)/$(VENV)/.knocks
SITE_LOG := $(CURDIR)/$(VENV)/.site.log

.DEFAULT_GOAL := help
.PHONY: help install demo test sync lab voila notebooks readme bench torture fuzz soak docs

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv and install what is missing (every target below does this itself)

demo: $(STAMP)  ## the whole pipeline on a photograph and on virtual subjects: report.html in demo_out/
	$(BIN)/aufacs demo --out "$(OUT)"

# Notebooks run under a guard: tests/guard/sitecustomize.py lets no process reach another machine, and notes who tried.
# The site is built beside the first of them, since neither of the two keeps all cores busy from its first to its last second.
test: sync  ## notebooks clean, modules in sync, the site, notebooks' assertions, tests/
	@rm -f $(KNOCKS)
	@$(BIN)/python -m compileall -q aufacs_nb  # where Python may not write what it compiles, each process would do it anew
	$(BIN)/python tools/make_site.py --jobs 1 >$(SITE_LOG) 2>&1 & site=$$!; OMP_NUM_THREADS=1 PYTHONPATH=tests/guard \
	  AUFACS_KNOCKS=$(KNOCKS) $(BIN)/nbdev_test --n_workers $(TESTERS) --timing; notebooks=$$?; \
	  wait $$site; built=$$?; cat $(SITE_LOG); test $$notebooks = 0 -a $$built = 0
	@test ! -s $(KNOCKS) || { echo "A notebook tried to reach another machine:" >&2; sort -u $(KNOCKS) >&2; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n $(TESTERS) --dist loadfile --durations=10

sync: $(STAMP)  ## are notebooks clean, modules and README what the notebooks make? (changes nothing)
	$(BIN)/python tools/check_notebooks.py

lab: $(STAMP)  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=nbs $(QUIET_LAB) $(LAB_ARGS)

voila: $(STAMP)  ## serve the widget demos on http://127.0.0.1:8866, to this machine alone
	$(BIN)/python -c "import sys; from aufacs_nb.apps.live import serve_demos; serve_demos('nbs/demos', $(PORT), False, more=sys.argv[1:])" $(VOILA_ARGS)

notebooks: $(STAMP)  ## run every notebook again in reading order and store its outputs; README.md follows
	$(BIN)/python tools/run_notebooks.py
	$(BIN)/python tools/make_readme.py

readme: $(STAMP)  ## README.md from nbs/index.ipynb
	$(BIN)/python tools/make_readme.py

torture: $(STAMP)  ## kill each long command at random moments, run it again, compare the bytes (an hour or two)
	OMP_NUM_THREADS=1 $(BIN)/python tools/torture.py

fuzz: $(STAMP)  ## try 2,000 bad inputs on every command: no traceback, no hang, no wrong success (ten minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tools/fuzz.py

soak: $(STAMP)  ## ten visitors use the demos for ten minutes: what must come back does (a quarter of an hour)
	OMP_NUM_THREADS=1 $(BIN)/python tools/soak.py

bench: $(STAMP)  ## how fast each part is on this machine: rendering, registration, training, prediction
	@for bench in tests/benchmarks/bench_*.py; do $(BIN)/python "$$bench" || exit 1; done

docs: $(STAMP)  ## the documentation site in _docs/, from notebooks as they are stored; nothing is run
	$(BIN)/python tools/make_site.py --jobs $(WORKERS)

# pip would compile on one core what it installs, its tests included: a minute and a half. Here it is done on all of
# WORKERS, tests left out. A few files are templates or for other versions of Python, and do not compile.
$(STAMP): settings.ini setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "aufacs_nb needs Python 3.11 or newer, and none was found on the PATH." >&2; \
	  echo "Install one, or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/pip || { echo "Creating $(VENV) with $(PYTHON)."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing what is missing into $(VENV) (a few minutes the first time) ..."
	$(if $(strip $(UV_OPTIONS)),$(BIN)/python -m pip install --quiet --disable-pip-version-check uv)
	$(if $(strip $(UV_OPTIONS)),$(BIN)/uv pip install --quiet --python $(BIN)/python $(strip $(UV_OPTIONS)),$(BIN)/python -m pip \
	  install --quiet --disable-pip-version-check --use-pep517 --no-compile) -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m compileall -q -j $(WORKERS) -x '/tests?/' $(VENV)/lib >/dev/null 2>&1 || true
	@du -sh $(VENV) | sed 's/\t/ /; s/$$/: the size of the environment/'
	@touch $@
