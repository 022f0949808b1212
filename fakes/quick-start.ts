// SPDX-License-Identifier: Apache-2.0

/**
 * What every fake does first. The timers of gRPC count in local time, and a process's first look at the time zones
 * costs a seventh of the CPU time of its start. Milliseconds are the same in all of them.
 */
export function startQuickly(): void {
  // oxlint-disable-next-line no-extend-native
  Date.prototype.setMilliseconds = Date.prototype.setUTCMilliseconds;
}
