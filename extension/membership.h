/*
 * membership.h
 *		Which companies a role belongs to, and at which level.
 */
#ifndef LEASEHOLD_MEMBERSHIP_H
#define LEASEHOLD_MEMBERSHIP_H

#include "utils/uuid.h"

typedef enum MemberLevel
{
	LEVEL_NONE,
	LEVEL_VIEWER,				/* metadata only */
	LEVEL_USER,					/* leases, commands, runs */
	LEVEL_MANAGER				/* environments, secrets, limits, members */
} MemberLevel;

typedef struct Membership
{
	pg_uuid_t	company;
	MemberLevel level;
	bool		asserts_actor;	/* may act for somebody it names */
} Membership;

/* All of a role's memberships but pending ones, its own and those of roles whose privileges it has. */
typedef struct MembershipList
{
	Oid			role;			/* hash key */
	bool		admin;			/* has the privileges of leasehold_admin */
	int			count;
	Membership *items;			/* one per company */
} MembershipList;

/*
 * The memberships of a role.  The result is cached: it is valid until the next
 * call of any function that may process invalidations, so copy what is needed.
 */
extern const MembershipList *membership_of_role(Oid role);

/* The role's membership in a company, or NULL. */
extern const Membership *membership_find(const MembershipList *list, const pg_uuid_t *company);

/*
 * Whether the role itself, not one whose privileges it has, has a membership in
 * the company, be it a pending one.
 */
extern bool membership_is_own(Oid role, const pg_uuid_t *company);

/* Finds a company by key; false if there is none.  No privilege is checked. */
extern bool membership_company_by_key(const char *key, pg_uuid_t *company);

/*
 * Ids of all companies, and first the nil id that stands for the installation;
 * palloc'd in the current context.
 */
extern Datum *membership_all_companies(int *count);

/* LEVEL_NONE if the text names no level. */
extern MemberLevel membership_parse_level(const char *text);

#endif							/* LEASEHOLD_MEMBERSHIP_H */
