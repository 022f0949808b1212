// SPDX-License-Identifier: Apache-2.0

/** Logs of any length: what is read of them, what is kept, and what a program that floods its own loses. */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Child, floods } from "../runtime/process.ts";
import { excerpt, LONGEST_LOG, readLog, shorten, tailOf } from "./log.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const FOLDER = mkdtempSync(join(tmpdir(), "log-"));
afterAll(() => rmSync(FOLDER, { recursive: true, force: true }));

const T0 = Date.parse("2026-11-24T13:02:11Z");
const line = (seconds: number, text: string) =>
  `${new Date(T0 + seconds * 1_000).toISOString()} INFO ${text}\n`;

/** A log of several gigabytes, of which only its ends are on the disk. */
function huge(name: string): string {
  const log = join(FOLDER, name);
  writeFileSync(log, line(0, "first words"));
  truncateSync(log, 3 * 2 ** 30);
  appendFileSync(log, `\n${line(60, "before")}${line(61, "last words")}`);
  return log;
}

test("of a log of 3 GB the end is read, in no time and little memory", () => {
  const log = huge("huge.log");
  const [began, before] = [performance.now(), process.memoryUsage.rss()];
  expect(tailOf(log, 1)).toBe("2026-11-24T13:03:12.000Z INFO last words");
  expect(excerpt(log, T0 + 60_500, T0 + 62_000)).toEqual([
    "(the log has 3.2 GB: its last 4.2 MB were looked through)",
    "2026-11-24T13:03:12.000Z INFO last words",
  ]);
  expect(performance.now() - began).toBeLessThan(5_000);
  expect(process.memoryUsage.rss() - before).toBeLessThan(200e6);
});

test("a copy of one has its beginning and its end, and says what is missing", () => {
  const copy = readLog(huge("copied.log"), 100_000);
  expect(copy.length).toBeLessThan(100_100);
  expect(copy).toStartWith(line(0, "first words"));
  expect(copy).toContain("\n… (3.2 GB are left out here) …\n");
  expect(copy).toEndWith(line(61, "last words"));
});

test("one line without an end is cut, and hides nothing that follows", () => {
  const log = join(FOLDER, "line.log");
  writeFileSync(log, `${"deadbeef".repeat(100_000)}\nlast words\n`);
  const began = performance.now();
  const [cut, last] = tailOf(log, 2).split("\n");
  expect(last ?? cut).toBe("last words");
  writeFileSync(log, line(0, "deadbeef".repeat(100_000)));
  expect(tailOf(log, 20)).toHaveLength(240);
  expect(excerpt(log, T0, T0)[0]).toMatch(/^2026-.{1995}…$/);
  expect(performance.now() - began).toBeLessThan(5_000);
});

test("what is no file is no log, and nobody waits for it", () => {
  const fifo = join(FOLDER, "fifo.log");
  Bun.spawnSync(["mkfifo", fifo]);
  for (const log of [fifo, FOLDER, join(FOLDER, "none.log")])
    expect([tailOf(log, 5), excerpt(log, 0, Infinity), readLog(log, 100)]).toEqual(["", [], ""]);
});

test("a log that is too long loses its middle", () => {
  const log = join(FOLDER, "short.log");
  writeFileSync(log, `first words\n${"x".repeat(100_000)}\nlast words\n`);
  expect(shorten(log, 200_000)).toBe(0);
  expect(shorten(log, 50_000)).toBeGreaterThan(70_000);
  const kept = readLog(log, 100_000);
  expect(kept.length).toBeLessThan(30_000);
  expect(kept).toStartWith("first words\n");
  expect(kept).toEndWith("\nlast words\n");
});

test("a program that floods its log neither fills the disk, nor waits, nor loses its last words, and is told of", async () => {
  mkdirSync(join(FOLDER, "1"));
  const log = join(FOLDER, "1", "driver.log");
  const flood = "echo first words; timeout 1 yes flood; sleep 0.3; echo; echo last words >&2; exit 7";
  const child = Child.start("driver", ["sh", "-c", flood], { PATH: process.env.PATH! }, log);
  let largest = 0;
  const looking = setInterval(() => (largest = Math.max(largest, statSync(log).size)), 10);
  await child.exited;
  clearInterval(looking);
  // The last look at it comes with its end.
  await Bun.sleep(0);
  expect(largest).toBeGreaterThan(LONGEST_LOG);
  expect(largest).toBeLessThan(20 * LONGEST_LOG);
  expect(statSync(log).size).toBeLessThanOrEqual(LONGEST_LOG);
  expect(readLog(log, 2 * LONGEST_LOG)).toStartWith("first words\n");
  expect(child.tail(1)).toMatch(/^driver\/1 floods its log: [\d.]+ [MG]B of it were not kept\nlast words$/);
  expect(floods(log)).toMatchObject([{ name: "driver", stack: 1, bytes: expect.any(Number) }]);
  expect(child.ending).toBe("exit code 7");
});
