/* The simulated machine, as it lies in a file that Python writes and every process maps: layout.py mirrors it.
 * Fields are 8 bytes wide or texts of a multiple of 8, so that no compiler pads and a field is written in one go.
 */
#ifndef WORLD_H
#define WORLD_H

#include <stdint.h>

#define MAX_DEVICES 16
#define MAX_SEGMENTS 64
#define MAX_RESETS 256
#define MAX_PARTS 8
#define MAX_PROCESSES 8
#define MAX_RULES 256
#define TEXT 96

typedef struct { double duration_s, from_w, to_w; } Segment;

/* What calls of a name give instead of an answer, while start_s <= now < end_s. Name "*": every call; "field N": one
 * field value. Device -1: all devices, and calls that belong to none. */
typedef struct { char name[TEXT]; int64_t device, code; double start_s, end_s; } Rule;

typedef struct {
    char name[TEXT], uuid[TEXT], bus_id[TEXT], parts[MAX_PARTS][TEXT];
    Segment curve[MAX_SEGMENTS];
    double resets_s[MAX_RESETS];
    double phase_s;                               /* of the curve */
    double tick_s, tick_phase_s, lag_s, jitter_s; /* when readings change */
    double counter_window_s, average_window_s, instant_window_s;
    double counter_gain, power_gain, counter_start_j;
    int64_t segments, repeat, resets, part_count, mig, virtualization;
    int64_t architecture, brand, major, minor, power_limit_mw, min_limit_mw, sm_mhz, memory_mhz, memory_bytes;
    int64_t temperature_c, utilization, process_count, processes[MAX_PROCESSES];
} Device;

typedef struct {
    char magic[8];
    int64_t origin_ns; /* CLOCK_MONOTONIC at t = 0 */
    int64_t devices, rules;
    char driver[TEXT];
    Rule rule[MAX_RULES];
    Device device[MAX_DEVICES];
} World;

double now_s(const World *world);
double power_mw(const Device *device, double now, double window_s);
double counter_mj(const Device *device, double now, int index);

#endif
