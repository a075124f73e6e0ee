/*
 * start_time.h
 *		When a process began, which tells it from a later one with its id.
 */
#ifndef LEASEHOLD_START_TIME_H
#define LEASEHOLD_START_TIME_H

#include <stdio.h>
#include <string.h>
#include <sys/types.h>

/* In clock ticks since the machine began; 0 if there is no such process.  See proc(5). */
static inline unsigned long long
process_start_time(pid_t pid)
{
	char		path[64];
	char		line[1024];
	unsigned long long began = 0;
	FILE	   *file;
	char	   *rest;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "re");
	if (file == NULL)
		return 0;
	/* the program's name, in parentheses, may hold anything */
	rest = fgets(line, sizeof(line), file) != NULL ? strrchr(line, ')') : NULL;
	fclose(file);
	if (rest == NULL ||
		sscanf(rest, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &began) != 1)
		return 0;
	return began;
}

#endif							/* LEASEHOLD_START_TIME_H */
