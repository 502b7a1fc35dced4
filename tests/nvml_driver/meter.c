/* What a board's meter shows: the power curve, seen in ticks, late, through a window, with a gain. */
#include <math.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "world.h"

double now_s(const World *world) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)((int64_t)t.tv_sec * 1000000000 + t.tv_nsec - world->origin_ns) / 1e9;
}

/* Joules of the first t seconds of the segments; before them the first power holds, after them the last. */
static double along(const Device *d, double t) {
    double joules = 0, watts = d->curve[0].from_w;
    for (int i = 0; i < d->segments && t > 0; i++) {
        const Segment *s = &d->curve[i];
        double spent = fmin(t, s->duration_s);
        joules += spent * (s->from_w + (s->to_w - s->from_w) * spent / s->duration_s / 2);
        watts = s->to_w;
        t -= spent;
        if (spent < s->duration_s) return joules;
    }
    return joules + t * watts;
}

/* Joules from an arbitrary zero to t. */
static double energy(const Device *d, double t) {
    t += d->phase_s;
    if (!d->repeat) return along(d, t);
    double period = 0;
    for (int i = 0; i < d->segments; i++) period += d->curve[i].duration_s;
    double turns = floor(t / period);
    return turns * along(d, period) + along(d, t - turns * period);
}

static double mean_w(const Device *d, double end, double window_s) {
    if (window_s < 1e-6) window_s = 1e-6; /* the power at the tick */
    return (energy(d, end) - energy(d, end - window_s)) / window_s;
}

/* How late a tick comes out: the lag, and a jitter that depends on nothing but the tick (splitmix64). */
static double delay_s(const Device *d, int64_t tick) {
    uint64_t z = (uint64_t)tick * 0x9e3779b97f4a7c15u + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return d->lag_s + d->jitter_s * (double)((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}

static double tick_time(const Device *d, int64_t tick) { return d->tick_phase_s + (double)tick * d->tick_s; }

/* The last tick that is out; at least 0, since a world begins with its first tick. */
static int64_t last_tick(const Device *d, double now) {
    int64_t tick = (int64_t)floor((now - d->lag_s - d->tick_phase_s) / d->tick_s);
    while (tick > 0 && tick_time(d, tick) + delay_s(d, tick) > now) tick--;
    return tick > 0 ? tick : 0;
}

double power_mw(const Device *d, double now, double window_s) {
    return 1000 * d->power_gain * mean_w(d, tick_time(d, last_tick(d, now)), window_s);
}

/* Joules that ticks 1 to `tick` have added: each the tick's length at the mean power of the window before it. Where the
 * window is the tick this is the true integral; else it is summed, from where the last call for this board left off. */
static double counted_j(const Device *d, int64_t tick, int index) {
    static struct { int64_t tick; double joules, tick_s, phase_s, window_s; Segment first; } sums[MAX_DEVICES];
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    if (d->counter_window_s == d->tick_s) return energy(d, tick_time(d, tick)) - energy(d, tick_time(d, 0));
    pthread_mutex_lock(&lock);
    int64_t done = sums[index].tick;
    double joules = sums[index].joules;
    if (done > tick || sums[index].tick_s != d->tick_s || sums[index].window_s != d->counter_window_s ||
        sums[index].phase_s != d->phase_s || memcmp(&sums[index].first, &d->curve[0], sizeof(Segment)))
        done = 0, joules = 0;
    while (done < tick) joules += d->tick_s * mean_w(d, tick_time(d, ++done), d->counter_window_s);
    sums[index].tick = done, sums[index].joules = joules, sums[index].tick_s = d->tick_s;
    sums[index].window_s = d->counter_window_s, sums[index].phase_s = d->phase_s, sums[index].first = d->curve[0];
    pthread_mutex_unlock(&lock);
    return joules;
}

/* What had been counted at a moment, between ticks in proportion to time. */
static double counted_at(const Device *d, double t, int index) {
    double ticks = fmax(0, (t - d->tick_phase_s) / d->tick_s);
    int64_t whole = (int64_t)floor(ticks);
    double before = counted_j(d, whole, index);
    return before + (ticks - (double)whole) * (counted_j(d, whole + 1, index) - before);
}

double counter_mj(const Device *d, double now, int index) {
    double reset = -INFINITY, from = -d->counter_start_j;
    for (int i = 0; i < d->resets; i++)
        if (d->resets_s[i] <= now && d->resets_s[i] > reset) reset = d->resets_s[i];
    if (reset > -INFINITY) from = d->counter_gain * counted_at(d, reset, index);
    return 1000 * fmax(0, d->counter_gain * counted_j(d, last_tick(d, now), index) - from);
}
