PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CT ?= demo/phantom/ct
RESULTS ?= demo/out
OHIF := build/ohif-app-3.13.2

# Orthanc listens on every network interface, therefore it gets a network of its own that has none.
ALONE := unshare --map-root-user --net sh -c 'ip link set lo up && exec "$$0" "$$@"'

# Two files of tests at a time, each in a process with one thread: several threads would wait for each other.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# Debian's packages start their service where systemd runs, unless it is masked before.
define debian
	@[ "$$(dpkg-query -W -f '$${db:Status-Status}\n' $(1) 2> /dev/null | grep -c '^installed$$')" = $(words $(1)) ] || { \
		[ "$$(id -u)" = 0 ] || { echo "error: root is needed to install the Debian packages $(1)"; exit 1; }; \
		[ ! -d /run/systemd/system ] || systemctl mask --quiet orthanc.service nginx.service; \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends $(1) > /dev/null; }
endef

export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: help demo test test-whole test-all map-tools map map-test map-twice validate pacs-tools pacs pacs-all web-tools web viewer fuzz bench lint clean

help:
	@echo "make demo      set up, make a synthetic chest CT, run on it and say where to look"
	@echo "make test      set up, lint, check types, run the tests"
	@echo "make test-whole  run the tests of whole runs, trainings and commands"
	@echo "make test-all  all of both, with the tests that take minutes"
	@echo "make map       build the image, a MONAI Application Package (Docker; VARIANT=gpu, IMAGE=name:tag, BASE=image)"
	@echo "make map-test  run the image as those do who host it"
	@echo "make map-twice build the image twice and compare"
	@echo "make validate  show results to validators (Debian, installs one; CT=FOLDER RESULTS=FOLDER)"
	@echo "make pacs      send the results of a run to an Orthanc and read them back (Debian, installs it)"
	@echo "make pacs-all  the same with the real CT by all ways, which takes long"
	@echo "make viewer    look at results in OHIF and save pictures of it (Debian; CT=FOLDER RESULTS=FOLDER)"
	@echo "make web       look at the pages of the gateway in a browser and save pictures of them (Debian, installs Chromium)"
	@echo "make fuzz      feed the series loader 10 000 damaged folders"
	@echo "make bench     measure, in ratios of one run"
	@echo "make clean     remove the environment and all that was made"

$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): takes a minute or two, needs about 3 GB ..."
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "error: Python 3.11, 3.12 or 3.13 is needed; try make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@rm -rf demo
	@$(BIN)/covid-ct phantom demo/phantom > /dev/null
	@$(BIN)/covid-ct run -i demo/phantom/ct -o demo/out > /dev/null
	@for each in demo/out/sc/*.dcm; do $(BIN)/covid-ct picture $$each demo/pictures/$$(basename $$each .dcm).png; done
	@echo
	@echo "Look at:"
	@echo "  demo/pictures/        overlays as PNG: CT, lesions, relevance of both channels"
	@echo "  demo/out/result.json  the findings in numbers"
	@echo "  demo/out/sc/          overlays for the eye: any DICOM viewer"
	@echo "  demo/out/seg/         lungs and lesions as DICOM Segmentation"
	@echo "  demo/out/sr/          the report as DICOM Structured Report"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PARALLEL) -m "not whole and not slow and not pacs and not image and not browser"

test-whole: $(STAMP)
	$(PARALLEL) -m "whole and not slow"

test-all: lint
	$(PARALLEL) -m "not pacs and not image and not browser"

map-tools:
	$(if $(shell docker info > /dev/null 2>&1 && echo yes),,$(call debian,docker.io mmdebstrap))

map: $(STAMP) map-tools
	@deploy/engine deploy/build-image

map-test: map
	deploy/engine $(BIN)/pytest -m image tests/image

map-twice: map
	deploy/engine $(BIN)/python -m tests.image.twice

validate: $(STAMP)
	@[ -d $(CT) ] && [ -d $(RESULTS) ] || { echo "error: $(CT) or $(RESULTS) is not there; make demo makes both"; exit 1; }
	$(call debian,pixelmed-apps default-jre-headless)
	$(BIN)/python -W ignore -m tests.validation $(CT) $(RESULTS)
	$(BIN)/pytest tests/operators/test_validity.py

pacs-tools:
	$(call debian,orthanc orthanc-dicomweb dcmtk iproute2 nginx-light)
	@$(ALONE) true || { echo "error: no permission to make a network namespace, in which Orthanc is to run"; exit 1; }

pacs: $(STAMP) pacs-tools
	$(ALONE) $(BIN)/pytest -m "pacs and not slow" tests/pacs

pacs-all: $(STAMP) pacs-tools
	$(ALONE) $(BIN)/pytest -m pacs tests/pacs

viewer: $(VENV)/.viewer $(OHIF)
	@[ -d $(CT) ] && [ -d $(RESULTS) ] || { echo "error: $(CT) or $(RESULTS) is not there; make demo makes both"; exit 1; }
	$(call debian,orthanc orthanc-dicomweb chromium iproute2)
	@rm -rf build/viewer
	$(ALONE) $(BIN)/python -W ignore -m tests.viewer $(CT) $(RESULTS) $(OHIF)/dist build/viewer

$(VENV)/.viewer: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt playwright
	@touch $@

$(OHIF):
	$(if $(shell command -v npm),,$(call debian,npm))
	@mkdir -p build
	@cd build && npm pack --silent @ohif/app@3.13.2 > /dev/null
	@rm -rf build/package && tar xzf $@.tgz -C build && mv build/package $@

web-tools: $(VENV)/.viewer
	$(call debian,chromium)

web: web-tools
	@rm -rf build/web
	$(BIN)/pytest -m browser tests/app/gateway
	@echo "look at build/web"

fuzz: $(STAMP)
	$(BIN)/python -W ignore -m tests.fuzz.run --cases 10000

bench: $(STAMP)
	$(BIN)/python -W ignore -m tests.bench

clean:
	rm -rf $(VENV) demo build dist models/converted *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
