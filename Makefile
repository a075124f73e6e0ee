# Leasehold: build with PGXS, `make help` for the rest.

EXTENSION    = extension/leasehold
EXTVERSION   = 0.1
MODULE_big   = leasehold

# A file has one subject; its directory says where it runs.
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard extension/*.c worker/*.c worker/providers/*.c)))

API          = $(sort $(wildcard extension/api/*.sql))
DATA_built   = extension/leasehold--$(EXTVERSION).sql
PG_CPPFLAGS  = -Iextension -Iworker -DLEASEHOLD_VERSION=\"$(EXTVERSION)\"
PG_CFLAGS    = -std=gnu11 -Wextra -Wno-unused-parameter -Wno-missing-field-initializers \
               -Wno-declaration-after-statement -fvisibility=hidden
SHLIB_LINK   = -lcurl -ljansson -Wl,-z,relro,-z,now
EXTRA_CLEAN  = extension/leasehold--$(EXTVERSION).sql

ifneq ($(SANITIZE),)
PG_CFLAGS   += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer
SHLIB_LINK  += -fsanitize=$(SANITIZE)
endif

PG_CONFIG ?= /usr/lib/postgresql/15/bin/pg_config
ifeq ($(wildcard $(PG_CONFIG)),)
PG_CONFIG = pg_config
endif

# Targets that prepare the machine must work before PostgreSQL is there.
PREPARING = help check check-sanitize demo demo-stop bench lint format
ifeq ($(filter $(PREPARING),$(MAKECMDGOALS)),)
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

extension/leasehold--$(EXTVERSION).sql: $(API)
	cat $^ > $@

$(OBJS): $(wildcard extension/*.h worker/*.h worker/providers/*.h)
endif
