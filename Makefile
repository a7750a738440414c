# `make demo` and `make test` do everything on a fresh machine: environment, install, run.

PYTHON ?= python3
DEMO_ENV ?= .venv
TEST_ENV ?= .venv-test

.PHONY: test-libraries demo docs test test-all test-deepspeed test-deepspeed-all test-oldest test-newest test-wheel lint clean

demo: $(DEMO_ENV)/.ready
	$(DEMO_ENV)/bin/hf-sharpness train recipes/digits-vit.yaml

test: $(TEST_ENV)/.ready
	$(TEST_ENV)/bin/ruff check .
	$(TEST_ENV)/bin/ruff format --check .
	$(TEST_ENV)/bin/mypy
	$(TEST_ENV)/bin/python -m pytest -n 2 --dist loadfile

test-all: $(TEST_ENV)/.ready
	$(TEST_ENV)/bin/python -m pytest -n 2 --dist loadfile -m ""

# The documentation's site, in site/.
docs: $(TEST_ENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(TEST_ENV)/bin/python -m mkdocs build --strict

test-deepspeed: $(TEST_ENV)/deepspeed/.ready
	$(TEST_ENV)/deepspeed/bin/python -m pytest tests/modes/test_mode_deepspeed.py

# With methods and training steps of the user's own: some minutes more.
test-deepspeed-all: $(TEST_ENV)/deepspeed/.ready
	$(TEST_ENV)/deepspeed/bin/python -m pytest tests/modes -k deepspeed

test-wheel: $(TEST_ENV)/.ready
	.ci/wheel $(TEST_ENV)

# The oldest versions that setup.cfg allows.
test-oldest: $(TEST_ENV)-oldest/.ready
	$(TEST_ENV)-oldest/bin/python -m pytest -n 2 --dist loadfile

# The newest versions of everything, whatever constraints.txt says.
test-newest: $(TEST_ENV)-newest/.ready
	$(TEST_ENV)-newest/bin/python -m pytest -n 2 --dist loadfile

lint: $(TEST_ENV)/.ready
	$(TEST_ENV)/bin/ruff format .
	$(TEST_ENV)/bin/ruff check --fix .

$(DEMO_ENV)/.ready: setup.cfg constraints.txt
	@echo "An environment in $(DEMO_ENV), with torch: a minute or two, the first time only."
	$(PYTHON) -m venv $(DEMO_ENV)
	$(DEMO_ENV)/bin/python -m pip install -c constraints.txt torch
	$(DEMO_ENV)/bin/python -m pip install -c constraints.txt -e ".[recipes]"
	touch $@

$(TEST_ENV)/.ready: setup.cfg constraints.txt
	@echo "An environment in $(TEST_ENV), with torch: a minute or two, the first time only."
	$(PYTHON) -m venv $(TEST_ENV)
	$(TEST_ENV)/bin/python -m pip install -c constraints.txt torch
	$(TEST_ENV)/bin/python -m pip install -c constraints.txt -e ".[test]"
	touch $@

$(TEST_ENV)-oldest/.ready: setup.cfg constraints-oldest.txt
	$(PYTHON) -m venv $(TEST_ENV)-oldest
	$(TEST_ENV)-oldest/bin/python -m pip install -c constraints-oldest.txt -e ".[test]"
	touch $@

$(TEST_ENV)-newest/.ready: setup.cfg
	$(PYTHON) -m venv $(TEST_ENV)-newest
	$(TEST_ENV)-newest/bin/python -m pip install -e ".[test]"
	touch $@

# An environment on top of the tests': with DeepSpeed installed every process that makes a Trainer imports it.
$(TEST_ENV)/deepspeed/.ready: $(TEST_ENV)/.ready
	$(PYTHON) -m venv $(TEST_ENV)/deepspeed
	$(TEST_ENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		$$($(TEST_ENV)/deepspeed/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth
	$(TEST_ENV)/deepspeed/bin/python -m pip install -c constraints.txt -e ".[deepspeed]"
	touch $@

clean:
	rm -rf $(DEMO_ENV) $(TEST_ENV) $(TEST_ENV)-oldest $(TEST_ENV)-newest build site *.egg-info

# Libraries with trainers or optimizers of their own, some of which want older versions than ours: an environment on top of the tests'.
test-libraries: $(TEST_ENV)/libraries/.ready
	$(TEST_ENV)/libraries/bin/python -m pytest tests/ecosystem/test_whole_steps.py \
		tests/ecosystem/test_gliclass.py tests/ecosystem/test_opacus.py

$(TEST_ENV)/libraries/.ready: $(TEST_ENV)/.ready
	$(PYTHON) -m venv $(TEST_ENV)/libraries
	$(TEST_ENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		$$($(TEST_ENV)/libraries/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth
	$(TEST_ENV)/libraries/bin/python -m pip install --quiet "torch==2.13.0" "gliner==0.2.29" \
		"gliclass==0.1.21" "opacus==1.6.0"
	$(TEST_ENV)/libraries/bin/python -m pip install --quiet --no-deps -e .
	touch $@
