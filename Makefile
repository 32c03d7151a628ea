# Everything happens in a virtual environment of this directory, one for each Python version; nothing outside is touched.

PYTHON ?= python3
ARGS ?=
JOBS ?= 2

# A Python of .ci/pythons lives in a folder with a C library of its own: all that is done with it is done in there.
ifneq ($(findstring /build/pythons/bin/,$(abspath $(PYTHON))),)
.PHONY: $(or $(MAKECMDGOALS),help)
$(or $(MAKECMDGOALS),help):
	@.ci/pythons run make --no-print-directory $@ PYTHON=/usr/bin/$(notdir $(PYTHON))
else

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# All that ends up in the package, or decides how it is built. Cython's C files are products.
SOURCES := setup.py pyproject.toml README.md LICENSE $(shell find mpipc -name '*.py' -o -name '*.py[xi]' -o -name '*.pxd' \
	-o -name py.typed -o -path '*/src/*.[ch]')

.PHONY: help preflight build demo test test-slow test-torch test-python test-without-undo test-all nightly smoke compat compat-all \
	compat-programs bench bench-quick bench-publish sanitize sanitize-quick soak lint clean distclean
.DELETE_ON_ERROR:

help:
	@echo 'make demo      build, and run examples/wordfreq.py on multiprocessing and on mpipc'
	@echo 'make test      build, and run a part of the tests that has all kinds of them, in eight minutes (ARGS="-k lock" passes'
	@echo '               options to pytest); make test-slow: the rest of them'
	@echo 'make test-torch  those that need torch (installs it: TORCH="torch==2.13.0+cpu" says which)'
	@echo 'make test-all  both, with each of Python 3.11 to 3.15 that is found'
	@echo 'make test-without-undo  the tests of killed processes on a kernel that ignores SEM_UNDO, as gVisor does (needs root)'
	@echo 'make nightly   everything with every Python, hours long'
	@echo 'make compat    CPython'"'"'s own tests of multiprocessing on mpipc (ARGS="--method fork"; see compat/run.py)'
	@echo 'make compat-all  make compat with each of Python 3.11 to 3.15 that is found'
	@echo 'make compat-programs  unmodified programs of other packages on both (installs them, about 500 MB)'
	@echo 'make bench     measure mpipc beside its peers, in about 8 minutes: tables, JSON and charts in build/bench'
	@echo '               (ARGS="locks streams" chooses; ARGS=--list lists the cases)'
	@echo 'make bench-quick  a selection of that, in under a minute'
	@echo 'make bench-publish  make bench, and show the figures in README.md and docs/benchmarks'
	@echo 'make sanitize  the tests on a build with the address and undefined-behaviour sanitizers, and the C core with that'
	@echo '               for data races (needs gcc'"'"'s libasan, libubsan and libtsan); make sanitize-quick: a part of it'
	@echo 'make soak      everything at once under kills, stops and raising signal handlers (SECONDS=3600 SEED=7; ROUND=12 of a'
	@echo '               seed again)'
	@echo 'make lint      ruff, mypy --strict and cython-lint'
	@echo 'make build     build and install the package into the virtual environment $(VENV)'
	@echo 'make clean     remove what was built; make distclean: and the virtual environments'
	@echo
	@echo 'PYTHON=python3.13 chooses another Python; each version has a virtual environment of its own.'

preflight:
	@.ci/preflight '$(PYTHON)'

$(VENV)/.made: | preflight
	@echo 'making the virtual environment $(VENV)'
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.build-tools: pyproject.toml .ci/requirements.py $(VENV)/.made
	@$(BIN)/python .ci/requirements.py build > $@.txt
	@$(PIP) -r $@.txt tqdm
	@touch $@

$(VENV)/.test-tools: pyproject.toml .ci/requirements.py $(VENV)/.made
	@echo 'installing what the tests need into $(VENV)'
	@$(BIN)/python .ci/requirements.py test > $@.txt
	@$(PIP) -r $@.txt
	@touch $@

$(VENV)/.dev-tools: pyproject.toml .ci/requirements.py $(VENV)/.made
	@echo 'installing ruff, mypy, cython-lint and clang-format into $(VENV)'
	@$(BIN)/python .ci/requirements.py dev > $@.txt
	@$(PIP) -r $@.txt
	@touch $@

# One by one: a peer that cannot be installed here is named as missing in the tables, and the others are measured.
$(VENV)/.bench-tools: pyproject.toml .ci/requirements.py $(VENV)/.made
	@echo 'installing the peers into $(VENV)'
	@$(BIN)/python .ci/requirements.py bench > $@.txt
	@while read -r requirement; do \
		$(PIP) "$$requirement" < /dev/null || echo "$$requirement could not be installed, and is left out" >&2; \
	done < $@.txt
	@touch $@

# Installed, not editable: what is tested is what a user gets. In the tree, too: who imports mpipc in its root finds that.
# build/ is kept, so that only changed modules are compiled again; the Python files in it are not, or one that was deleted
# would live on.
$(VENV)/.built: $(SOURCES) $(VENV)/.build-tools
	@echo 'building mpipc for Python $(VERSION)'
	@if test -d build; then find build -path build/pythons -prune -o -name '*.py' -exec rm {} +; fi
	@$(PIP) --no-build-isolation --no-deps --force-reinstall .
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

build: $(VENV)/.built

demo: $(VENV)/.built
	@mkdir -p build/demo
	@for backend in multiprocessing mpipc; do \
		$(BIN)/python examples/wordfreq.py --backend $$backend $(ARGS) > build/demo/$$backend.txt || exit 1; \
	done
	@cat build/demo/mpipc.txt
	@diff build/demo/multiprocessing.txt build/demo/mpipc.txt && echo 'The output of both is identical.'

# Not loadgroup: with xdist 3.8 the run hangs at its end after a worker has crashed, or was ended by a test's timeout
# (pytest-xdist issues 1323 and 1327).
DIST := worksteal

# Which tests are slow: tests/plugins/slow.py. The targets below run the slow ones of their files as well.
test: $(VENV)/.built $(VENV)/.test-tools
	@$(BIN)/pytest -n $(JOBS) --dist $(DIST) -m 'not slow' $(ARGS)

test-slow: $(VENV)/.built $(VENV)/.test-tools
	@$(BIN)/pytest -n $(JOBS) --dist $(DIST) -m slow $(ARGS)

$(VENV)/.torch: $(VENV)/.test-tools
	@echo 'installing torch into $(VENV)'
	@$(PIP) "$(or $(TORCH),torch)"
	@touch $@

test-torch: $(VENV)/.built $(VENV)/.torch
	@$(BIN)/pytest tests/memory/test_torch.py tests/memory/test_torch_programs.py $(ARGS)

# What depends on the interpreter more than on the C core; for those that do not get the whole of the tests every time.
PYTHON_TESTS := $(addprefix tests/stdlib/test_,api.py context.py process.py install.py managers.py interrupt.py) \
	$(addprefix tests/pool/test_,executor.py pool.py pool_calls.py) $(addprefix tests/memory/test_,sharedctypes.py shared_memory.py) \
	tests/sync/test_synchronize.py $(addprefix tests/queue/test_,queues.py plain.py) tests/core/test_liveness.py \
	tests/cli/test_doctor.py tests/house/test_stubs.py

test-python: $(VENV)/.built $(VENV)/.test-tools
	@$(BIN)/pytest -n $(JOBS) --dist $(DIST) $(PYTHON_TESTS) $(ARGS)

# The tests where the answer to a dead process is what is tested, on a kernel that ignores SEM_UNDO.
WITHOUT_UNDO_TESTS := $(addprefix tests/core/test_,must_show.py family.py members.py) tests/sync/test_synchronize_kill.py \
	tests/pool/test_pool_deaths.py

test-without-undo: $(VENV)/.built $(VENV)/.test-tools
	@.ci/without-undo $(BIN)/pytest -n $(JOBS) --dist $(DIST) $(WITHOUT_UNDO_TESTS) $(ARGS)

nightly:
	@.ci/nightly

test-all:
	@status=0; for python in $$(.ci/interpreters); do \
		echo "== $$python"; \
		$(MAKE) --no-print-directory test PYTHON=$$python || status=1; \
		$(MAKE) --no-print-directory test-slow PYTHON=$$python || status=1; \
	done; exit $$status

# Build, import and run the example on a small tree; for the interpreters that do not get the whole of the tests.
smoke: $(VENV)/.built
	@for backend in multiprocessing mpipc; do \
		$(BIN)/python examples/wordfreq.py --backend $$backend mpipc tests > $(VENV)/smoke-$$backend.txt || exit 1; \
	done
	@diff $(VENV)/smoke-multiprocessing.txt $(VENV)/smoke-mpipc.txt && echo 'Python $(VERSION): the output of both is identical.'

# CPython's tests use little of the processor and sleep a lot: more of them than there are processors run at a time.
compat: $(VENV)/.built
	@$(BIN)/python compat/run.py --jobs $$(($(JOBS) * 2)) --json build/compat/$(VERSION).json $(ARGS)

compat-all:
	@status=0; for python in $$(.ci/interpreters); do \
		echo "== $$python"; $(MAKE) --no-print-directory compat PYTHON=$$python || status=1; \
	done; exit $$status

$(VENV)/.programs: pyproject.toml .ci/requirements.py $(VENV)/.made
	@echo 'installing the packages whose programs are run into $(VENV)'
	@$(BIN)/python .ci/requirements.py programs > $@.txt
	@$(PIP) -r $@.txt
	@touch $@

compat-programs: $(VENV)/.built $(VENV)/.programs
	@$(BIN)/python compat/programs.py $(ARGS)

# Alone on the machine, if the figures are to mean something.
bench: $(VENV)/.built $(VENV)/.bench-tools
	@$(BIN)/python benchmarks/run.py --output build/bench $(ARGS)

bench-quick: $(VENV)/.built $(VENV)/.bench-tools
	@$(BIN)/python benchmarks/run.py --quick --output build/bench-quick $(ARGS)

bench-publish: $(VENV)/.built $(VENV)/.bench-tools
	@$(BIN)/python benchmarks/run.py --output build/bench --publish $(ARGS)

# A build of its own, not installed. Python itself is not instrumented, so the libraries are loaded before it; what it leaks is
# no business of ours. Reports of the reaper and of children end them, which the tests see.
SANITIZED := build/sanitize-$(VERSION)
RACES := 20000
QUICK_TESTS := $(addprefix tests/core/test_,family.py hostile_family.py) tests/sync/test_synchronize.py \
	$(addprefix tests/memory/test_,heap.py sharedctypes.py shared_memory.py) $(addprefix tests/queue/test_,queues.py plain.py) \
	tests/pool/test_pool.py tests/sysv

# Not with sanitizers: what starts programs with an environment of its own, in which the libraries are not loaded first; what dies
# of SIGSEGV on purpose, which is an error to them; what is run step by step.
NOT_SANITIZED := $(addprefix --ignore tests/,house/test_soak.py stdlib/test_compat.py core/test_liveness.py) -k 'not SIGSEGV and not compileall'

$(SANITIZED)/.built: $(SOURCES) $(VENV)/.build-tools
	@echo 'building mpipc for Python $(VERSION), with sanitizers'
	@rm -rf $(SANITIZED)/lib
	@MPIPC_SANITIZE=address,undefined $(BIN)/python setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib \
		2>&1 | grep -v byte-compiling || true
	@touch $@

$(SANITIZED)/races: tests/native/races.c $(wildcard mpipc/_core/src/*.[ch])
	@mkdir -p $(SANITIZED)
	@$(CC) -g -O1 -std=gnu11 -fsanitize=thread -Wno-tsan -iquote mpipc/_core/src -o $@ $< \
		$(filter-out %/mpipc-reaper.c,$(wildcard mpipc/_core/src/*.c)) -lpthread

sanitize sanitize-quick: $(SANITIZED)/.built $(SANITIZED)/races $(VENV)/.test-tools
	@unshare -i true 2>/dev/null && wrapper='unshare -i' || wrapper=; \
		$$wrapper timeout 300 $(SANITIZED)/races $(if $(filter sanitize,$@),$(RACES),3000)
	@LD_PRELOAD="$$($(CC) -print-file-name=libasan.so):$$($(CC) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
		PYTHONPATH=$(CURDIR)/$(SANITIZED)/lib MPIPC_SANITIZED=1 \
		$(BIN)/pytest -n $(JOBS) --dist $(DIST) --timeout 400 $(NOT_SANITIZED) $(if $(filter sanitize,$@),,$(QUICK_TESTS)) $(ARGS)

soak: $(VENV)/.built $(VENV)/.test-tools
	@cd tests && ../$(BIN)/python -m soak $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(ROUND),--round $(ROUND)) $(ARGS)

C_FILES := $(wildcard mpipc/_core/src/*.[ch] tests/native/*.[ch] benchmarks/floor/*.c)

lint: $(VENV)/.dev-tools
	@status=0; \
	echo 'ruff'; $(BIN)/ruff check . && $(BIN)/ruff format --check . || status=1; \
	echo 'mypy --strict mpipc'; $(BIN)/mypy --strict -p mpipc || status=1; \
	echo 'mypy --strict examples'; $(BIN)/mypy --strict examples/*.py || status=1; \
	echo 'cython-lint'; PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint mpipc || status=1; \
	echo 'clang-format'; $(BIN)/clang-format --dry-run --Werror $(C_FILES) || status=1; \
	exit $$status

# The folder of .ci/pythons takes two minutes to make, and depends on nothing here.
clean:
	if test -d build; then find build -mindepth 1 -maxdepth 1 ! -name pythons -exec rm -rf {} +; fi
	rm -rf dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .venv-*/.built
	find mpipc -name '*.so' -delete
	rm -f mpipc/_core/mpipc-reaper
	find mpipc -name '*.pyx' | while read -r source; do rm -f "$${source%.pyx}.c"; done
	find mpipc tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv-* build

endif
