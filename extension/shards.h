/*
 * shards.h
 *		How companies are spread over several workers.
 */
#ifndef LEASEHOLD_SHARDS_H
#define LEASEHOLD_SHARDS_H

/* as leasehold_internal.shard_of() has it: a hash of the company's id modulo this */
#define SHARDS			64

#endif							/* LEASEHOLD_SHARDS_H */
