# Everything one does here. Needs make and Python 3.11 or newer; the rest is built into build/ from hash-locked files.
#   make run                              the whole platform on this machine
#   make run ENGINE=sim REPLICAS=8        on simulated H100 replicas instead of Triton
#   make run HTTP_PORT=9080 GRPC_PORT=9081 ADMIN_PORT=9082     on other ports; 0 takes any free one
PYTHON ?= python3
ENGINE ?=
REPLICAS ?=
HTTP_PORT ?=
GRPC_PORT ?=
ADMIN_PORT ?=
STANDBYS ?=
REPLAY ?=
RUN_DIR ?=
TESTS ?= tests
TRACES ?=
PHASES ?=
DURATION_S ?= 180
RIVALS ?=
ROUNDS ?=
SECONDS ?=
TARGET ?=
MINUTES ?= 1
KEEP ?=
NATIVE ?= $(FAIRLEAD_NATIVE)
LEVEL ?=

# Where nobody names a Python, the bootstrap may take a faster one.
THIS = $(if $(filter file,$(origin PYTHON)),,--this-python)
BOOTSTRAP = exec $(PYTHON) deploy/bootstrap.py $(THIS)
NATIVE_TESTS = tests/unit/relay tests/unit/router tests/unit/gateway tests/unit/model_units tests/fuzz \
	$(foreach core,waiting_line batch_queue demand tickets,tests/stateful/test_$(core)_model.py) tests/stateful/test_length_machine.py
WITH_TESTS = $(PYTHON) deploy/bootstrap.py $(THIS) --tests
VENV = build/venv/bin
PACKAGES = common model_units fairlead ratelimiter capacity control_plane data_plane engines simulation deploy tools benchmarks
BUILT = $(if $(filter off,$(NATIVE)),,native)
TRITON = $(if $(filter sim,$(ENGINE)),no,$(if $(filter triton,$(ENGINE)),yes,auto))

.DEFAULT_GOAL := help
.PHONY: help run test test-unit test-faults fuzz lint format type proto verify-proto native test-native lock bench-live bench-units bench-sim bench-quota bench-routing bench-relay bench-relay-soak image up down clean

help: ## This list
	@sed -n '2,5s/^# \{0,1\}//p' Makefile
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

run: ## The platform here: ENGINE=triton|sim REPLICAS=n STANDBYS=1 REPLAY=seconds (0: none) RUN_DIR=dir
	@$(BOOTSTRAP) --triton $(TRITON) -- -m deploy.local --engine "$(ENGINE)" --replicas "$(REPLICAS)" \
		--http-port "$(HTTP_PORT)" --grpc-port "$(GRPC_PORT)" --admin-port "$(ADMIN_PORT)" \
		--standbys "$(STANDBYS)" --replay "$(REPLAY)" --run-dir "$(RUN_DIR)"

test: ## Every test: unit, stateful, real etcd, real Triton, end to end, Docker where there is an engine; TESTS=path
	@$(BOOTSTRAP) --tests --triton auto -- -m pytest -n 3 --dist loadfile -ra $(TESTS)

test-unit: ## The tests that take seconds
	@$(BOOTSTRAP) --tests -- -m pytest -q tests/unit tests/stateful

test-faults: ## The whole chain while something dies, hangs, is cut off or runs full; root for cuts and full disks
	@$(BOOTSTRAP) --tests -- -m pytest -n 2 --dist loadfile -ra tests/faults

fuzz: ## Any bytes at the relay's parsers: TARGET=name MINUTES=n; KEEP=1 keeps what reaches most code for the tests
	@$(BOOTSTRAP) --tests -- -m tests.fuzz $(if $(TARGET),"$(TARGET)",--help) --minutes "$(MINUTES)" $(if $(KEEP),--keep)

lint: ## Style, imports, likely mistakes
	@$(WITH_TESTS)
	$(VENV)/ruff check --no-cache .
	$(VENV)/ruff format --check .

format: ## Brings all files into the house's format
	@$(WITH_TESTS)
	$(VENV)/ruff format .

type: ## Static types, strict
	@$(WITH_TESTS)
	$(VENV)/mypy $(PACKAGES)

proto: ## Generates the stubs from protos/
	@$(WITH_TESTS)
	PATH="$(CURDIR)/$(VENV):$$PATH" $(VENV)/python tools/generate_stubs.py

verify-proto: ## Checks that the stubs are those of protos/
	@$(WITH_TESTS)
	PATH="$(CURDIR)/$(VENV):$$PATH" $(VENV)/python tools/generate_stubs.py --verify

native: ## Compiles the router's busiest modules; needs gcc and Python's headers, and all works without, slower; LEVEL=0 to 3
	@$(BOOTSTRAP) --tests -- -m deploy.native $(LEVEL)

test-native: native ## The tests of what is compiled, on what `make native` made of it; TESTS=path
	FAIRLEAD_NATIVE=on $(VENV)/python -m pytest -q $(if $(filter file,$(origin TESTS)),$(NATIVE_TESTS),$(TESTS))

lock: ## Resolves requirements/*.in into hash-locked files (needs the package index)
	@$(PYTHON) deploy/bootstrap.py $(THIS) --lock

bench-live: ## Three minutes of recorded traffic on Triton and on simulated replicas: TRACES=dir DURATION_S=n
	@TRACES="$(TRACES)" DURATION_S="$(DURATION_S)" $(BOOTSTRAP) --tests --triton auto -- -m benchmarks.live

bench-units: ## How true model units are: calibrated profiles against simulated replicas; TRACES=dir
	@TRACES="$(TRACES)" $(BOOTSTRAP) --tests -- -m benchmarks.units

bench-sim: ## Speed of the fleet in virtual time, and its growth to 512 replicas; TRACES=dir
	@TRACES="$(TRACES)" $(BOOTSTRAP) --tests -- -m benchmarks.simulation

bench-quota: ## Does quota hold: 3 routers, 8 tenants x 128 streams, faults, rival rules, the cores' speed; TRACES=dir
	@TRACES="$(TRACES)" $(BOOTSTRAP) --tests -- -m benchmarks.quota

bench-routing: ## Is the right replica chosen: rival rules, stickiness, surges, the sharder, live; TRACES=dir PHASES=a,b
	@TRACES="$(TRACES)" $(BOOTSTRAP) --tests -- -m benchmarks.routing $(PHASES)

bench-relay: $(BUILT) ## CPU per request and token, beside other routers: PHASES=a,b RIVALS=a,b|none ROUNDS=n SECONDS=n NATIVE=off
	@FAIRLEAD_NATIVE="$(NATIVE)" PHASES="$(PHASES)" RIVALS="$(RIVALS)" ROUNDS="$(ROUNDS)" SECONDS="$(SECONDS)" REPLICAS="$(REPLICAS)" \
		$(BOOTSTRAP) --tests -- -m benchmarks.relay

bench-relay-soak: $(BUILT) ## Half an hour at .7 of a core with cancels, resets and slow readers: MINUTES=n NATIVE=off
	@FAIRLEAD_NATIVE="$(NATIVE)" MINUTES="$(if $(filter file,$(origin MINUTES)),,$(MINUTES))" $(BOOTSTRAP) --tests -- -m benchmarks.relay.soak

image: ## The container image
	docker compose build

up: ## The platform in containers
	docker compose up --detach --wait

down: ## Ends the platform in containers; its volumes stay
	docker compose down

clean: ## Removes build/ and every cache
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
