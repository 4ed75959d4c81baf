/* Linked into llm.c's CPU program: its lines come out as they are printed, so that they are there when it is ended. */
#include <stdio.h>

__attribute__((constructor)) static void lines(void) { setvbuf(stdout, NULL, _IOLBF, 0); }
