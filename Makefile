# Leasehold: build with PGXS, `make help` for the rest.

EXTENSION    = extension/leasehold
EXTVERSION   = 0.2
MODULE_big   = leasehold

# A file has one subject; its directory says where it runs.
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard extension/*.c worker/*.c worker/providers/*.c)))

# The SQL of a released version is frozen: extension/api/ goes on as the next one.
API          = $(sort $(wildcard extension/api/*.sql))
RELEASED     = $(wildcard extension/released/leasehold--*.sql)
DATA         = $(RELEASED) $(wildcard extension/upgrades/leasehold--*.sql)
ifeq ($(filter %/leasehold--$(EXTVERSION).sql,$(RELEASED)),)
DATA_built   = extension/leasehold--$(EXTVERSION).sql
endif
PG_CPPFLAGS  = -Iextension -Iworker -Isandbox -DLEASEHOLD_VERSION=\"$(EXTVERSION)\"
PG_CFLAGS    = -std=gnu11 -Wextra -Wno-unused-parameter -Wno-missing-field-initializers \
               -Wno-declaration-after-statement -fvisibility=hidden
SHLIB_LINK   = -lcurl -ljansson -Wl,-z,relro,-z,now
EXTRA_CLEAN  = extension/leasehold--$(EXTVERSION).sql $(SANDBOX)

# A program of its own: what runs outside of the server.
SANDBOX      = sandbox/leasehold_sandbox

ifneq ($(SANITIZE),)
PG_CFLAGS   += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer
SHLIB_LINK  += -fsanitize=$(SANITIZE)
endif

PG_CONFIG ?= /usr/lib/postgresql/15/bin/pg_config
ifeq ($(wildcard $(PG_CONFIG)),)
PG_CONFIG = pg_config
endif

# Targets that prepare the machine must work before PostgreSQL is there.
PREPARING = help check check-sanitize demo demo-stop bench soak lint format upgrade-script
.PHONY: $(PREPARING)
ifneq ($(filter $(PREPARING),$(MAKECMDGOALS)),)

help:
	@echo 'make                  builds the extension (PG_CONFIG=... chooses the server)'
	@echo 'make install          installs it into that server'
	@echo 'make demo             starts a private server here and leads through a first lease'
	@echo 'make demo-stop        stops it'
	@echo 'make check            builds and runs every test; installs Debian packages that it lacks'
	@echo 'make check T="..."    some of them: suites (see dev/check.sh) or files, as in T="regress t/003*"'
	@echo 'make check-sanitize   the tests of the C code, built with address and undefined behaviour sanitizers'
	@echo 'make soak             leases for SOAK_MINUTES (10): does the worker grow, is a lease lost'
	@echo 'make lint             the checks of the source code alone'
	@echo 'make format           formats the C code in place'
	@echo 'make bench            measures'
	@echo 'make upgrade-script   writes the script that upgrades the latest release to what is in extension/api/'
	@echo 'make clean            removes what `make` built; rm -rf build (after make demo-stop) the rest'

check:
	@T='$(T)' dev/check.sh

check-sanitize:
	@SANITIZE=address,undefined T='$(T)' dev/check.sh

lint:
	@T=lint dev/check.sh

demo:
	@dev/demo.sh start

demo-stop:
	@dev/demo.sh stop

bench soak format:
	@dev/$@.sh

upgrade-script:
	@python3 dev/checks/upgrade_script.py

else
PGXS := $(shell $(PG_CONFIG) --pgxs)
ifeq ($(PGXS),)
$(error PostgreSQL 15 for development is missing: see README.md, or run `make demo`, which installs what it needs)
endif
include $(PGXS)

extension/leasehold--$(EXTVERSION).sql: $(API)
	cat $^ > $@

$(OBJS): Makefile $(wildcard extension/*.h worker/*.h worker/providers/*.h sandbox/*.h)

all: $(SANDBOX)
$(SANDBOX): $(SANDBOX).c Makefile $(wildcard sandbox/*.h)
	$(CC) $(CFLAGS) -Isandbox -fPIE -pie -Wl,-z,relro,-z,now -o $@ $< -lseccomp

install: install-sandbox
install-sandbox: $(SANDBOX) installdirs
	$(INSTALL_PROGRAM) $(SANDBOX) '$(DESTDIR)$(pkglibdir)/'
uninstall: uninstall-sandbox
uninstall-sandbox:
	rm -f '$(DESTDIR)$(pkglibdir)/leasehold_sandbox'
.PHONY: install-sandbox uninstall-sandbox
endif
