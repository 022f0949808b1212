// SPDX-License-Identifier: Apache-2.0

import { afterEach, beforeEach, expect, test } from "bun:test";
import { appendFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { CallRecord, ScenarioResult } from "./model.ts";
import { assemble, type Entry, readRecords, Recorder } from "./record.ts";

const T0 = 1_700_000_000_000;
const standing = { real: false, label: "fake", program: "x" };
const stack = { gateway: standing, driver: standing, engine: standing, supervisor: standing };

const scenario = (id: string, more: Partial<ScenarioResult> = {}): ScenarioResult => ({
  ...{
    suite: "external-podman",
    id,
    title: `${id} does`,
    file: "a.test.ts",
    line: 3,
    verdict: "pass",
    reason: "",
  },
  ...{ at: T0 + 1_000, ms: 250, source: "", harm: "", expected: "", seen: "", stack: 1, sandboxes: [] },
  ...{ logs: { gateway: [], driver: [] }, engine: [], engineCalls: [] },
  ...more,
});
const call = (seq: number, at: number): CallRecord => ({
  ...{ stack: 1, seq, method: "GetSandbox", at, ms: 3, status: "OK", details: "", sandbox: "s" },
  ...{ request: {}, responses: [] },
});
const begin: Entry = { kind: "begin", at: T0, run: "0badcafe", command: "bun test", stack };

let folder: string;
beforeEach(() => (folder = mkdtempSync(join(tmpdir(), "rec-"))));
afterEach(() => rmSync(folder, { recursive: true }));

test("times are since the run's start, calls in their order", () => {
  const calls: Entry = { kind: "calls", calls: [call(2, T0 + 900), call(1, T0 + 800)] };
  const results = assemble([
    begin,
    calls,
    { kind: "scenario", scenario: scenario("LC-01") },
    { kind: "end", at: T0 + 5_000 },
  ]);
  expect(results?.run).toMatchObject({
    id: "0badcafe",
    ms: 5_000,
    cutOff: false,
    startedAt: "2023-11-14T22:13:20.000Z",
  });
  expect(results?.scenarios[0]).toMatchObject({ id: "LC-01", at: 1_000, ms: 250 });
  expect(results?.calls.map(({ seq, at }) => [seq, at])).toEqual([
    [1, 800],
    [2, 900],
  ]);
  expect(results?.counts).toMatchObject({ pass: 1, fail: 0 });
});

test("a run that was killed is cut off, and so is the scenario in whose midst it was", () => {
  const results = assemble([
    begin,
    { kind: "running", scenario: scenario("LC-01") },
    { kind: "scenario", scenario: scenario("LC-02") },
  ]);
  expect(results?.run.cutOff).toBe(true);
  expect(results?.scenarios.map(({ id, verdict }) => [id, verdict])).toEqual([
    ["LC-02", "pass"],
    ["LC-01", "cut"],
  ]);
});

test("of a scenario that was cut off it says how long it ran, on which stack, and what the logs had of it", () => {
  mkdirSync(join(folder, "3"));
  const line = (ms: number, text: string) => `${new Date(T0 + ms).toISOString()} INFO ${text}\n`;
  writeFileSync(join(folder, "3", "gateway.log"), line(100, "before") + line(1_500, "after"));
  const recorder = new Recorder();
  recorder.to(folder, "test");
  recorder.add(begin);
  const running = scenario("LC-01", { ms: 0, stack: 0, sandboxes: [] });
  recorder.add({ kind: "running", scenario: running });
  recorder.add({ kind: "running", scenario: { ...running, stack: 3, sandboxes: ["s"] } });
  recorder.add({ kind: "ended", pid: 7, at: T0 + 4_000, ending: "signal SIGKILL", told: false });
  const results = assemble(readRecords(folder));
  expect(results?.run.ms).toBe(4_000);
  expect(results?.scenarios).toMatchObject([
    { verdict: "cut", at: 1_000, ms: 3_000, stack: 3, sandboxes: ["s"] },
  ]);
  expect(results?.scenarios[0]?.logs.gateway.join("\n")).toEndWith("INFO after");
  expect(results?.scenarios[0]?.logs.gateway).toHaveLength(1);
});

test("what -t leaves out is counted, each once, and nothing is before the run", () => {
  const results = assemble([
    { kind: "unselected", title: "LC-02 b" },
    { kind: "unselected", title: "LC-02 b" },
    { kind: "unselected", title: "LC-03 c" },
    { kind: "scenario", scenario: scenario("LC-01", { verdict: "skip", at: T0 - 50 }) },
    begin,
    { kind: "end", at: T0 + 5_000 },
  ]);
  expect(results).toMatchObject({ run: { unselected: 2 }, scenarios: [{ id: "LC-01", at: 0 }] });
});

test("of a scenario that ran more than once, a failure stays, with how often it was", () => {
  const runs = [{}, { verdict: "fail" as const, reason: "it was late" }, {}];
  const results = assemble([
    begin,
    ...runs.map((more): Entry => ({ kind: "scenario", scenario: scenario("LC-01", more) })),
    { kind: "end", at: T0 + 5_000 },
  ]);
  expect(results?.scenarios).toHaveLength(1);
  expect(results?.scenarios[0]).toMatchObject({ reason: "it was late", times: { run: 3, failed: 1 } });
  expect(results?.counts).toMatchObject({ pass: 0, fail: 1 });
});

test("a process has its readiness and its end", () => {
  const process = { name: "gateway", stack: 1, pid: 7, at: T0 + 10 };
  const results = assemble([
    begin,
    { kind: "process", process },
    { kind: "ready", pid: 7, at: T0 + 110 },
    { kind: "ended", pid: 7, at: T0 + 910, ending: "exit code 0", told: true },
    { kind: "scenario", scenario: scenario("LC-01") },
  ]);
  expect(results?.processes).toEqual([
    { name: "gateway", stack: 1, pid: 7, at: 10, readyMs: 100, ms: 900, ending: "exit code 0", told: true },
  ]);
});

test("of a stack that others used before, only this run's calls count", () => {
  const calls: Entry = { kind: "calls", calls: [call(1, T0 + 100), call(2, T0 + 2_000)] };
  const results = assemble([begin, calls, { kind: "scenario", scenario: scenario("LC-01") }], T0 + 1_000);
  expect(results?.calls.map(({ seq, at }) => [seq, at])).toEqual([[2, 1_000]]);
});

test("and what was told since then on a watch that was open before", () => {
  const events = [T0 + 500, T0 + 2_000].map((at) => ({ at, sandbox: "s", event: {} }));
  const watch = { ...call(1, T0 + 100), ms: undefined, method: "WatchSandboxes", events };
  const calls: Entry = { kind: "calls", calls: [watch] };
  const results = assemble([begin, calls, { kind: "scenario", scenario: scenario("LC-01") }], T0 + 1_000);
  expect(results?.calls[0]?.events).toMatchObject([{ at: 1_000, sandbox: "s" }]);
});

test("without a scenario there is nothing to report", () => {
  expect(assemble([begin])).toBeUndefined();
});

test("what was recorded before there was a run is not lost, and half a line is no harm", () => {
  const recorder = new Recorder();
  recorder.add({ kind: "scenario", scenario: scenario("LC-01") });
  recorder.to(folder, "test");
  recorder.add(begin);
  appendFileSync(join(folder, "records-test.jsonl"), '{"kind":"scena');
  expect(assemble(readRecords(folder))?.scenarios.map(({ id }) => id)).toEqual(["LC-01"]);
});
