// SPDX-License-Identifier: Apache-2.0

/** Waiting with deadlines: every wait here ends, and says what it saw last. */
import os, { cpus, loadavg } from "node:os";

import { EXIT, HarnessError } from "./errors.ts";
import { ENDING } from "./signals.ts";

/** How `eventually` waits. Times are in milliseconds. */
export interface Waiting {
  what: string;
  deadlineMs?: number;
  /** Ends the wait at once: what is awaited can no longer happen. */
  failed?: () => string | undefined | Promise<string | undefined>;
}

/** How often it is asked whether a wait is in vain, in milliseconds. */
const LOOK_MS = 100;

/**
 * Tries `attempt` again until it returns without throwing, and returns what it returned.
 * @throws HarnessError with the last thing seen, once `deadlineMs` (10 s) have passed or `failed` says why; also while an
 * attempt is under way.
 */
export async function eventually<T>(attempt: () => T | Promise<T>, waiting: Waiting): Promise<T> {
  const { what, deadlineMs = 10_000, failed } = waiting;
  const started = performance.now();
  const left = () => deadlineMs - (performance.now() - started);
  let seen = "nothing: the first attempt has no end";
  const inVain = async () => {
    const verdict = await failed?.();
    const late = left() <= 0 && `not within ${Math.round(deadlineMs)} ms${overload()}`;
    if (verdict || late) throw new HarnessError(`${what}: ${verdict || late}\n  last seen: ${seen}`);
  };
  for (let pause = 2; ; pause = Math.min(pause * 1.5, LOOK_MS)) {
    const attempted = Promise.try(attempt).then(
      (result) => ({ result }),
      (error: unknown) => void (seen = error instanceof Error ? error.message : String(error)),
    );
    let ended: { result: T } | void | "open";
    while ((ended = await orAfter(Math.min(LOOK_MS, left() + 1), attempted)) === "open") await inVain();
    if (ended) return ended.result;
    await inVain();
    await Bun.sleep(Math.min(pause, left() + 1));
  }
}

/** How `until` waits. `seen` tells what to report in place of the last look, where a look returns nothing. */
type Looking = Omit<Waiting, "what"> & { seen?: () => unknown };

type Truthy<T> = Exclude<T, undefined | null | false | 0 | "">;

/**
 * Looks until it sees something, anything truthy, and resolves with that.
 * @throws HarnessError with what was seen last, or with the last error, once `deadlineMs` (20 s) have passed.
 */
export function until<Seen>(
  what: string,
  look: () => Promise<Seen> | Seen,
  { seen, deadlineMs = 20_000, failed }: Looking = {},
): Promise<Truthy<Seen>> {
  const attempt = async () => {
    const found = await look();
    if (!found) throw new Error(seen ? Bun.inspect(seen()) : "nothing yet");
    return found as Truthy<Seen>;
  };
  return eventually(attempt, { what, deadlineMs, failed });
}

/** What `work` resolves with, or "open" when that takes longer than `ms`. */
function orAfter<T>(ms: number, work: Promise<T>): Promise<T | "open"> {
  let timer: Timer;
  const open = new Promise<"open">((resolve) => (timer = setTimeout(resolve, Math.max(0, ms), "open")));
  return Promise.race([work, open]).finally(() => clearTimeout(timer));
}

/** So many processes that want a CPU, for each that there is, and deadlines say nothing of the programs. */
const OVERLOAD = 8;

/** Says of a machine that has no time for anybody that it has none; empty for any other. */
function overload([load = 0] = loadavg(), count = cpus().length): string {
  if (load < OVERLOAD * count) return "";
  return ` (the machine is overloaded: ${Math.round(load)} processes wait for its ${count} CPUs)`;
}

/** What `work` resolves with. @throws HarnessError, or what `late` returns, after `deadlineMs`. */
export async function within<T>(
  deadlineMs: number,
  what: string,
  work: Promise<T>,
  late = () => new HarnessError(`${what}: not within ${deadlineMs} ms`) as Error,
): Promise<T> {
  let timer: Timer | undefined;
  const tooLate = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(late()), deadlineMs);
  });
  try {
    return await Promise.race([work, tooLate]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Does `work`, which is to end soon once `stop` is aborted: by the first SIGINT, SIGTERM or SIGHUP (not under `nohup`). The second one ends the
 * process at once. Resolves with the exit code of `work`, or with 128 + n after a signal.
 */
export async function interruptible(work: (stop: AbortSignal) => Promise<number>): Promise<number> {
  const stop = new AbortController();
  let code: number | undefined;
  const handlers = ENDING.map((name) => {
    const end = () => {
      for (const [signal, handler] of handlers) process.off(signal, handler);
      code = 128 + os.constants.signals[name];
      console.error(
        `${name}: nothing more is begun, and what was begun is cleared away; a second one ends this at once`,
      );
      stop.abort(new HarnessError(`ended by ${name}`));
    };
    return [name, end] as const;
  });
  for (const [signal, handler] of handlers) process.on(signal, handler);
  const end = await work(stop.signal).catch((error: unknown) => {
    if (error !== stop.signal.reason) throw error;
  });
  return code ?? end ?? EXIT.error;
}

/** What `work` resolves with. @throws why `stop` was aborted, `graceMs` after that. */
export async function unless<T>(stop: AbortSignal | undefined, work: Promise<T>, graceMs = 0): Promise<T> {
  if (!stop) return work;
  const stopped = Promise.withResolvers<never>();
  let timer: Timer | undefined;
  const begin = () => (timer = setTimeout(() => stopped.reject(stop.reason), graceMs));
  if (stop.aborted) begin();
  else stop.addEventListener("abort", begin);
  try {
    return await Promise.race([work, stopped.promise]);
  } finally {
    clearTimeout(timer);
    stop.removeEventListener("abort", begin);
  }
}

/** After so long a wait that holds up the end is named, in milliseconds. */
const SILENT_MS = 2_000;

/** What `work` resolves with. Once `stop` is aborted, says on stderr that `what` is waited for, unless that ends soon. */
export async function named<T>(stop: AbortSignal | undefined, what: string, work: Promise<T>): Promise<T> {
  if (!stop) return work;
  let timer: Timer | undefined;
  const begin = () =>
    (timer = setTimeout(() => console.error(`openshell-e2e: waiting for ${what}`), SILENT_MS));
  if (stop.aborted) begin();
  else stop.addEventListener("abort", begin);
  try {
    return await work;
  } finally {
    clearTimeout(timer);
    stop.removeEventListener("abort", begin);
  }
}

/** Does each piece of work when it is its turn: `most` at a time, asked when the first one comes. */
export function turns(most: () => number): (work: () => Promise<void>) => Promise<void> {
  let atATime: number | undefined;
  let running = 0;
  const queue: (() => void)[] = [];
  return async (work) => {
    if (running >= (atATime ??= most())) await new Promise<void>((next) => queue.push(next));
    running++;
    try {
      await work();
    } finally {
      running--;
      queue.shift()?.();
    }
  };
}
