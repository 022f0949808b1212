// SPDX-License-Identifier: Apache-2.0

/** Time as Podman tells it: nanoseconds, and never the same one twice, so that two runs never end at one instant. */

export const NEVER = "0001-01-01T00:00:00Z";

let last = 0n;

/** Nanoseconds since the epoch, of `at` or of now; later than all instants before. */
export function instant(at = BigInt(Math.round((performance.timeOrigin + performance.now()) * 1e6))): bigint {
  last = at > last ? at : last + 1n;
  return last;
}

/** RFC 3339 with nanoseconds, as Go prints it. */
export function timestamp(nanoseconds = instant()): string {
  const whole = new Date(Number(nanoseconds / 1_000_000n)).toISOString().slice(0, 19);
  return `${whole}.${String(nanoseconds % 1_000_000_000n).padStart(9, "0")}Z`;
}

/** Seconds since the epoch, as the container list gives times; Go's zero time is this odd number. */
export const unixSeconds = (time: string): number =>
  time === NEVER ? -62135596800 : Math.floor(Date.parse(time) / 1000);
