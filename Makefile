# Every verb sets itself up in .venv first (test-stack and audit in environments of their own); the machine needs Linux,
# Python 3.11, 3.12 or 3.13, make and git.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)

# What .venv holds already, else the CPU lock: after `make setup REQUIREMENTS=requirements/cuda.txt` all verbs keep it.
REQUIREMENTS ?= $(firstword $(patsubst .venv/installed-%,requirements/%.txt,$(wildcard .venv/installed-*)) requirements/cpu.txt)
PARTS := build common torch-cpu cuda-libraries
STAMP := .venv/installed-$(basename $(notdir $(REQUIREMENTS)))
SITE := .venv/site-generator
AUDIT := .venv-audit/installed
AUDITED := cpu cuda docs audit $(patsubst requirements/%.txt,%,$(wildcard requirements/stack-*.txt))

# A stack is another torch with its fbgemm and torchrec: requirements/stack-STACK.txt, or `lock`, what .venv holds.
STACK ?= lock
STACKS := $(patsubst requirements/stack-%-libraries.txt,%,$(wildcard requirements/stack-*-libraries.txt))
ifeq ($(STACK),lock)
ENVIRONMENT := .venv
INSTALLED := $(STAMP)
else ifneq ($(filter $(STACK),$(STACKS)),)
ENVIRONMENT = .venv-$(STACK)-$(shell $(PYTHON) -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
INSTALLED = $(ENVIRONMENT)/installed
else
$(error STACK must be lock or one of $(STACKS): got $(STACK); name one of these)
endif

.PHONY: setup train test test-stack test-slow test-gpu gpu-proof test-machines check bench reproduce reproduce-quick docs \
	figures lock audit

setup: $(STAMP)

# The CPU and the CUDA build of fbgemm share a folder, so a change of lock starts from an empty .venv.
$(STAMP): $(REQUIREMENTS) $(PARTS:%=requirements/%.txt) setup.cfg pyproject.toml
	$(if $(filter-out $@,$(wildcard .venv/installed-*)),rm -rf .venv)
	$(call install,.venv,$(REQUIREMENTS),requirements/cuda-libraries.txt)
	touch $@

# An environment for each stack and Python, which no other verb uses.
.venv-$(STACK)-%/installed: $(addprefix requirements/,build.txt common.txt stack-$(STACK).txt stack-$(STACK)-libraries.txt) \
		setup.cfg pyproject.toml
	$(call install,$(@D),requirements/stack-$(STACK).txt,requirements/stack-$(STACK)-libraries.txt)
	touch $@

# Into a folder, by a lock and the CUDA libraries of its torch, in the order that requirements/cpu.txt explains. pip keeps
# a torch that it finds there, even one for CPUs where the lock is for CUDA; so doctor looks at what came of it.
define install
	$(call environment,$(1))
	$(call locked,$(1),requirements/build.txt)
	$(if $(filter %/cpu.txt,$(2)),$(call torch_for_cpus,$(1),requirements/torch-cpu.txt))
	$(call locked,$(1),$(2))
	if $(1)/bin/pip show torch | grep -q nvidia; then $(call locked,$(1),$(3)); fi
	$(1)/bin/pip install --no-deps --no-build-isolation -e .
	$(1)/bin/dlrm-recipes doctor versions wheels
endef

define environment
	$(if $(PYTHON),,$(error Python 3.11, 3.12 or 3.13 must be on PATH: found none; install one or name it with PYTHON=...))
	$(PYTHON) -m venv $(1)
endef

locked = $(1)/bin/pip install --require-hashes --no-deps --no-build-isolation -r $(2)

# Left to choose by cpu.txt alone, pip would take the index's build, whose hash it knows before it has the file.
torch_for_cpus = if $(1)/bin/pip install --dry-run --no-deps $$(grep -o '^torch==[^ ]*' $(2)) >/dev/null 2>&1; then \
	$(call locked,$(1),$(2)); fi

# two processes share the cores (torchrun's own default is one thread for each)
train: export OMP_NUM_THREADS ?= $(shell n=$$(nproc); echo $$(( n > 1 ? n / 2 : 1 )))
train: setup
	.venv/bin/torchrun --standalone --nproc_per_node 2 recipes/train_dlrm.py --run-dir runs/first

# One worker per core, which has one thread and takes whole files in the order of tests/conftest.py: those that take
# minutes come first.
TEST := pytest -n auto --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu'
test test-stack: export OMP_NUM_THREADS ?= 1

test: setup
	.venv/bin/$(TEST)

test-machines: setup
	.venv/bin/python tests/machines.py .venv/bin/$(TEST)

test-stack: $(INSTALLED)
	$(ENVIRONMENT)/bin/$(TEST)

test-slow: $(SITE)
	.venv/bin/pytest -m 'slow and not gpu'

test-gpu: setup
	.venv/bin/pytest -m gpu tests/gpu

# everything that only a GPU can show, within eight minutes; docs/gpu.md
gpu-proof: setup
	.venv/bin/python benchmarks/gpu_proof.py

check: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

bench: setup
	@set -e; for benchmark in $(filter-out benchmarks/gpu_proof.py benchmarks/reproduce.py,$(wildcard benchmarks/*.py)); do echo "== $$benchmark"; .venv/bin/python $$benchmark; done
	@set -e; for name in family unseen_pairs width_and_depth; do echo "== $$name"; .venv/bin/python -m benchmarks.quality.$$name; done

# rows of RESULTS.md again, published beside now: those that a program can read, or as many as take 20 minutes
reproduce: setup
	.venv/bin/python benchmarks/reproduce.py

reproduce-quick: setup
	.venv/bin/python benchmarks/reproduce.py --minutes 20

# The generator of the site is added to .venv when it is first needed.
$(SITE): requirements/docs.txt $(STAMP)
	$(call locked,.venv,requirements/docs.txt)
	touch $@

docs: $(SITE)
	.venv/bin/python docs/site_pages.py --output build/docs
	@echo "open build/docs/html/index.html"

# the pictures in docs/figures, drawn again by the commands that its pages name: some ten minutes
figures: setup
	.venv/bin/python docs/draw.py
	.venv/bin/python docs/figures.py

# the hashes in all locks, again, after a version in one of them was changed by hand
lock:
	$(PYTHON) requirements/lock.py requirements/*.txt

$(AUDIT): requirements/audit.txt
	$(call environment,.venv-audit)
	$(call locked,.venv-audit,requirements/audit.txt)
	touch $@

# Known vulnerabilities of what the locks name; --strict, because pip-audit passes what it could not look up.
audit: $(AUDIT)
	.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes $(AUDITED:%=-r requirements/%.txt) \
		$$(sed -n 's/^\([A-Z]*-[^ ]*\) .*/--ignore-vuln \1/p' requirements/audit-exceptions.txt)
