// SPDX-License-Identifier: Apache-2.0

/**
 * The logs of programs, as they are read: from their end, and never more than a bounded part, since a program may write
 * gigabytes, or one line without an end.
 */
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  readSync,
  statSync,
  writeSync,
} from "node:fs";
import { readableWhole, withoutSpans } from "./readable.ts";

/** How much of a log's end its last lines are looked for in, in bytes; and what a scenario's lines are. */
const TAIL_BYTES = 2 ** 16;
const EXCERPT_BYTES = 2 ** 22;
/** How many lines of each log a report keeps of a scenario. */
const EXCERPT_LINES = 60;
/** What is shown of a line, in characters; and what is looked at, so that no secret is cut in two where it is shown. */
const TAIL_LINE = 240;
const EXCERPT_LINE = 2_000;
const LOOKED_LINE = 20_000;
/** A line may be written a little before or after what it tells of, in milliseconds. */
const MARGIN_MS = 100;

/** A part of a log. */
interface Part {
  text: string;
  /** Of the whole log, in bytes. */
  size: number;
}

/** Does something with an open log. Of what is not there, or is no regular file, nothing is known. */
function withLog<T>(
  log: string,
  flags: number,
  work: (descriptor: number, size: number) => T,
): T | undefined {
  let descriptor: number;
  try {
    // To open a FIFO must not mean to wait for whoever writes to it.
    descriptor = openSync(log, flags | constants.O_NONBLOCK);
  } catch {
    return undefined;
  }
  try {
    const found = fstatSync(descriptor);
    return found.isFile() ? work(descriptor, found.size) : undefined;
  } finally {
    closeSync(descriptor);
  }
}

/** Bytes of a file, fewer if it ends before. */
function bytesAt(descriptor: number, from: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  return bytes.subarray(0, readSync(descriptor, bytes, 0, length, from));
}

/** The end of a log, from the beginning of a line if there is one. */
function endOf(log: string, most: number): Part {
  const read = (descriptor: number, size: number): Part => {
    const from = Math.max(0, size - most);
    const bytes = bytesAt(descriptor, from, size - from);
    const line = from === 0 ? 0 : bytes.indexOf("\n") + 1;
    return { text: bytes.toString("utf8", line < bytes.length ? line : 0), size };
  };
  return withLog(log, constants.O_RDONLY, read) ?? { text: "", size: 0 };
}

/** All of a log, or its beginning and its end if it is longer than `most` bytes; empty if there is none. As it was written. */
export function readLog(log: string, most: number): string {
  const read = (descriptor: number, size: number): string => {
    if (size <= most) return bytesAt(descriptor, 0, size).toString();
    const head = Math.floor(most / 8);
    const tail = most - head;
    const [begin, end] = [bytesAt(descriptor, 0, head), bytesAt(descriptor, size - tail, tail)];
    return `${begin}\n${leftOut(size - most)}\n${end}`;
  };
  return withLog(log, constants.O_RDONLY, read) ?? "";
}

const leftOut = (bytes: number): string => `… (${sizeWords(bytes)} are left out here) …`;

/** A size as a person says it: "1.2 GB". */
export const sizeWords = (bytes: number): string =>
  bytes < 1e9 ? `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;

/** The last lines of a log, readable. A gateway wraps its last words at 80 columns; here they are one line. */
export function tailOf(log: string, lines: number): string {
  return readableWhole(endOf(log, TAIL_BYTES).text)
    .replace(/\n[ \t]{1,40}│ (?=\S)/g, " ")
    .trimEnd()
    .split("\n")
    .slice(-lines)
    .map((line) => withoutSpans(line.slice(0, LOOKED_LINE)).slice(0, TAIL_LINE))
    .join("\n");
}

/**
 * The last lines of a log that were written between two times, in milliseconds since 1970, readable. None if none bears a
 * time; of a long log only the end is looked through, which it says.
 */
export function excerpt(log: string, from: number, to: number): string[] {
  const { text, size } = endOf(log, EXCERPT_BYTES);
  let inside = false;
  const within = text
    .trimEnd()
    .split("\n")
    .filter((line) => {
      const written = Date.parse(/\d{4}-\d\d-\d\dT[\d:.]{1,24}Z/.exec(line.slice(0, LOOKED_LINE))?.[0] ?? "");
      // A line without a time of its own belongs to the one before.
      if (!Number.isNaN(written)) inside = written >= from - MARGIN_MS && written <= to + MARGIN_MS;
      return inside;
    })
    .slice(-EXCERPT_LINES)
    .map((line) => line.slice(0, LOOKED_LINE));
  const shown = within.length > 0 ? readableWhole(within.join("\n")).split("\n") : [];
  return [
    ...(size > EXCERPT_BYTES
      ? [`(the log has ${sizeWords(size)}: its last ${sizeWords(EXCERPT_BYTES)} were looked through)`]
      : []),
    ...shown.map((line) => (line.length > EXCERPT_LINE ? `${line.slice(0, EXCERPT_LINE)}…` : line)),
  ];
}

/** A log that is longer loses its middle, in bytes: what it keeps of its beginning and its end is enough to read. */
export const LONGEST_LOG = 2 ** 26;
const KEPT = { head: 2 ** 20, tail: 2 ** 23 };

/** What is moved at a time while a program goes on writing, in bytes; and how often, at most. */
const CHUNK = 2 ** 20;
const CHUNKS = 48;

/**
 * Takes the middle out of a log that is too long, while its program goes on writing: the end is moved to the front, and the
 * file is cut behind it. What is written between the last look at the end and the cut, some
 * microseconds, is lost: of a program that floods at 1.8 GB/s up to the moment of its end, the last words were, once in 21.
 * @returns how many bytes were taken out
 */
export function shorten(log: string, longest = LONGEST_LOG): number {
  if ((statSync(log, { throwIfNoEntry: false })?.size ?? 0) <= longest) return 0;
  const cut = (descriptor: number, size: number): number => {
    const [head, tail] = [Math.min(KEPT.head, longest / 4), Math.min(KEPT.tail, longest / 4)];
    const taken = size - head - tail;
    let [from, to] = [size - tail, head];
    const put = (bytes: Buffer) => (to += writeSync(descriptor, bytes, 0, bytes.length, to));
    put(Buffer.from(`\n${leftOut(taken)}\n`));
    for (let chunk = 0; chunk < CHUNKS; chunk++) {
      const bytes = bytesAt(descriptor, from, CHUNK);
      if (bytes.length === 0) break;
      from += bytes.length;
      put(bytes);
    }
    ftruncateSync(descriptor, to);
    return taken;
  };
  // Not to append: what is moved must not come behind what is written next.
  return withLog(log, constants.O_RDWR, cut) ?? 0;
}
