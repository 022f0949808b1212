// SPDX-License-Identifier: Apache-2.0

/** `--verbose` and `--trace`: what the programs of a run write, as they write it, with one clock for all. */
import { closeSync, fstatSync, openSync, readdirSync, readSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { readableWhole, withoutSpans } from "../base/readable.ts";

const EVERY_MS = 100;
const COLOURS = { gateway: 36, driver: 33, engine: 35, rpc: 32, keeper: 90 } as const;

/** What is followed: the programs' logs, and the calls between gateway and driver. */
export interface Following {
  verbose: boolean;
  trace: boolean;
  colour: boolean;
  print: (line: string) => void;
}

/** Where the calls of a stack are written for `--trace`; in the stack's folder. */
export const TRACE_FILE = "rpc.log";

/**
 * Prints every line that is written to the logs below a run's folder from now on.
 * @returns what ends it, after the last lines.
 */
export function follow(folder: string, following: Following): () => void {
  const read = new Map<string, number>();
  const tick = () => {
    const lines: { file: string; time: string; text: string }[] = [];
    for (const file of logsBelow(folder)) {
      const isTrace = basename(file) === TRACE_FILE;
      if (isTrace ? !following.trace : !following.verbose) continue;
      const [text, end] = newLines(file, read.get(file) ?? 0);
      read.set(file, end);
      for (const line of readableWhole(text).split("\n").filter(Boolean)) {
        // A line without a time of its own belongs to the one before in its log.
        const time = WRITTEN.exec(line)?.[1] ?? lines.findLast((each) => each.file === file)?.time ?? clock();
        lines.push({ file, time, text: prefixed(file, line, time, following.colour) });
      }
    }
    // Logs are read one after the other, and what stands in them was written at the same time.
    for (const { text } of lines.toSorted((a, b) => a.time.localeCompare(b.time))) following.print(text);
  };
  const timer = setInterval(tick, EVERY_MS);
  timer.unref();
  return () => {
    clearInterval(timer);
    tick();
  };
}

/** The logs of the programs that all stacks share, and of each stack. */
function logsBelow(folder: string): string[] {
  const logsIn = (path: string) =>
    names(path)
      .filter((name) => name.endsWith(".log"))
      .map((name) => join(path, name));
  const stacks = names(folder).filter((name) => /^\d{1,3}$/.test(name));
  return [folder, ...stacks.map((name) => join(folder, name))].flatMap(logsIn);
}

function names(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    // The run is over.
    return [];
  }
}

/** What is shown of a log at a time, in bytes; whoever writes faster for long is not shown whole. */
const STEP = 2 ** 20;
const BEHIND = 2 ** 24;

/** The whole lines of a file after a position, a bounded part of them, and where they end. */
function newLines(file: string, from: number): [text: string, end: number] {
  let descriptor: number;
  try {
    const found = statSync(file);
    if (!found.isFile() || found.size === from) return ["", from];
    descriptor = openSync(file, "r");
  } catch {
    return ["", from];
  }
  try {
    const { size } = fstatSync(descriptor);
    // A log that is too long loses its middle, and is shorter then.
    const begin = size < from || size - from > BEHIND ? Math.max(0, size - STEP) : from;
    const skipped =
      begin === from ? "" : `… what was written meanwhile is not shown, the log grows too fast …\n`;
    const buffer = Buffer.alloc(Math.min(STEP, size - begin));
    const length = readSync(descriptor, buffer, 0, buffer.length, begin);
    const line = buffer.subarray(0, length).lastIndexOf("\n") + 1;
    // A line that has no end is shown in pieces.
    const whole = line === 0 && length === STEP ? length : line;
    return [skipped + buffer.toString("utf8", 0, whole), begin + whole];
  } finally {
    closeSync(descriptor);
  }
}

/** What is shown of a line, in characters. */
const LONGEST_LINE = 4_000;

const WRITTEN = /^\s{0,40}(?:\d{4}-\d\d-\d\dT)?(\d\d:\d\d:\d\d(?:\.\d{1,3})?)\d*Z?\s*/;

const clock = (): string => new Date().toISOString().slice(11, 23);

/** "13:02:11.204 gateway/1 | text": when it was written, by its own word or when it was read, who wrote it, and what. */
function prefixed(file: string, line: string, time: string, colour: boolean): string {
  const name = basename(file, ".log");
  const stack = /^\d+$/.exec(basename(dirname(file)))?.[0];
  const who = (stack ? `${name}/${stack}` : name).padEnd(11);
  const code = COLOURS[name.split("-")[0] as keyof typeof COLOURS] ?? 37;
  const head = colour ? `\x1b[${code}m${time.padEnd(12)} ${who}|\x1b[0m` : `${time.padEnd(12)} ${who}|`;
  const said = withoutSpans(line.slice(0, LONGEST_LINE).replace(WRITTEN, ""));
  return `${head} ${said}${line.length > LONGEST_LINE ? "…" : ""}`;
}
