// SPDX-License-Identifier: Apache-2.0

import { afterEach, beforeEach, expect, test } from "bun:test";
import { appendFileSync, mkdirSync, mkdtempSync, rmSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "../base/waiting.ts";
import { follow, TRACE_FILE } from "./follow.ts";

let folder: string;
let printed: string[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "follow-"));
  mkdirSync(join(folder, "1"));
  printed = [];
});
afterEach(() => rmSync(folder, { recursive: true }));

const following = (more: { verbose?: boolean; trace?: boolean; colour?: boolean }) =>
  follow(folder, {
    ...{ verbose: false, trace: false, colour: false },
    ...more,
    print: (line) => printed.push(line),
  });
const write = (name: string, text: string) => appendFileSync(join(folder, name), text);

test("lines of all programs come with one clock, and say who wrote them", () => {
  const end = following({ verbose: true });
  write("1/gateway.log", "2026-11-24T13:02:11.204567Z  INFO openshell: ready\n");
  write("engine.log", "without a time\n");
  end();
  expect(printed).toContain("13:02:11.204 gateway/1  | INFO openshell: ready");
  expect(printed.join("\n")).toMatch(/\d\d:\d\d:\d\d\.\d{3} engine     \| without a time/);
});

test("what was written later comes later, whichever log it is in, and without its spans", () => {
  const end = following({ verbose: true });
  const at = (ms: number) => `2026-11-24T13:02:11.${ms}Z  INFO`;
  write("1/driver.log", `${at(300)} second\n      its other line\n${at(500)} fourth\n`);
  const span = 'request{method=POST path="/openshell.v1.OpenShell/GetSandbox" request_id=7 otel.name="x"}: ';
  write("1/gateway.log", `${at(100)} ${span}first\n${at(400)} third\n`);
  end();
  expect(printed.map((line) => line.split("| ")[1])).toEqual([
    "INFO first",
    "INFO second",
    "      its other line",
    "INFO third",
    "INFO fourth",
  ]);
});

test("calls are shown when they are asked for, logs when they are", () => {
  const end = following({ trace: true });
  write("1/gateway.log", "a log\n");
  write(`1/${TRACE_FILE}`, "2026-11-24T13:02:11.300Z StopSandbox → OK after 3.0 ms\n");
  end();
  expect(printed).toEqual(["13:02:11.300 rpc/1      | StopSandbox → OK after 3.0 ms"]);
});

test("half a line waits for its other half, and is shown once", () => {
  const end = following({ verbose: true });
  write("1/driver.log", "half a");
  write("1/driver.log", " line\nand");
  end();
  expect(printed.map((line) => line.split("| ")[1])).toEqual(["half a line"]);
});

test("a log that grows faster than it can be shown is shown in part, and that is said", () => {
  const end = following({ verbose: true });
  write("1/driver.log", `${"x".repeat(99)}\n`.repeat(400_000));
  end();
  expect(printed.length).toBeLessThan(20_000);
  expect(printed[0]).toEndWith("| … what was written meanwhile is not shown, the log grows too fast …");
});

test("a line without an end is shown in pieces, and none of them whole", () => {
  const end = following({ verbose: true });
  write("1/driver.log", "x".repeat(3_000_000));
  end();
  expect(printed).toHaveLength(1);
  expect(printed[0]!.length).toBeLessThan(5_000);
});

test("a log whose middle was taken out is followed from where it ends", async () => {
  const end = following({ verbose: true });
  write("1/driver.log", `${"x".repeat(99)}\n`.repeat(1_000));
  await eventually(() => expect(printed).toHaveLength(1_000), { what: "the log to be shown" });
  truncateSync(join(folder, "1/driver.log"), 100);
  write("1/driver.log", "last words\n");
  end();
  expect(printed.at(-1)).toEndWith("| last words");
});

test("colour only where it is wanted, and a token nowhere", () => {
  const end = following({ verbose: true, colour: true });
  write("1/driver.log", "token eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl\n");
  end();
  expect(printed[0]).toStartWith("\x1b[33m");
  expect(printed[0]).toEndWith("token <token>");
});
