/* Linked into llm.c's CPU program: makes its output line-buffered, so that no line is lost when it is killed. */
#include <stdio.h>

__attribute__((constructor)) static void lines(void) { setvbuf(stdout, NULL, _IOLBF, 0); }
