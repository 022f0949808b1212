// SPDX-License-Identifier: Apache-2.0

/** Ten failures made on purpose: each must point to the process that is at fault, and say what to do, on one screen. */
import { describe, expect, test } from "bun:test";
import { stripVTControlCharacters } from "node:util";
import { largeExample, smallExample } from "./example.ts";
import { caseOf, explain } from "./explain.ts";
import { isRed, type Results, type ScenarioResult } from "./model.ts";
import { explainOnTerminal, SCREEN_LINES } from "./terminal.ts";
import { markWords } from "./text.ts";

const results = smallExample();
const of = (id: string, from: Results = results): ScenarioResult =>
  from.scenarios.find((scenario) => scenario.id === id)!;

describe("a failure points to the process that is at fault", () => {
  test.each([
    [
      "a driver that returns the wrong code",
      "XF-01",
      "driver",
      "The driver answered StopSandbox with INTERNAL",
      "container state improper",
      "what the engine answered",
    ],
    [
      "a driver that hangs",
      "XF-02",
      "driver",
      "did not answer CreateSandbox for 11.0 s",
      "CreateSandbox → no answer",
      "what it waits for",
    ],
    [
      "a driver that dies",
      "XF-03",
      "driver",
      "The driver died 930 ms into the scenario: it ended with signal SIGABRT",
      "panicked",
      "outlive every call",
    ],
    [
      "a gateway that will not start",
      "XF-04",
      "gateway",
      "did not come up: it ended with exit code 1",
      "invalid compute driver name",
      "last words",
    ],
    [
      "an engine that is gone",
      "XF-05",
      "engine",
      "could not be reached",
      "Cannot connect to Podman",
      "bun harness.ts doctor",
    ],
    [
      "an image that is missing",
      "XF-06",
      "engine",
      "no such image",
      "image not known",
      "OPENSHELL_SANDBOX_IMAGE",
    ],
    [
      "a volume that is left over",
      "XF-07",
      "driver",
      "left something behind: volume, secret",
      "volume openshell-sandbox-",
      "DeleteSandbox",
    ],
    [
      "a token that leaks",
      "XF-08",
      "driver",
      "A secret is where it must not be: with the driver",
      "the driver's log",
      "in a file",
    ],
    [
      "a scenario that sometimes fails",
      "XF-09",
      "gateway",
      "All 3 calls that crossed the socket ended with OK",
      'expected "READY", saw "STARTING"',
      "too early",
    ],
    [
      "a setting that is wrong",
      "XF-10",
      "harness",
      "A setting is wrong: OPENSHELL_SANDBOX_IMAGE",
      "",
      "Correct it",
    ],
    [
      "a rule of the contract that is broken",
      "DC-31",
      "driver",
      "The driver broke the rule",
      "",
      "compute_driver.proto",
    ],
    [
      "a run that is cut off",
      "DI-01",
      "harness",
      "The run ended while this scenario was under way",
      "",
      "Run it again",
    ],
  ] as const)("%s", (_, id, culprit, sentence, line, advice) => {
    const found = explain(of(id), results);
    expect(found.culprit).toBe(culprit);
    expect(found.sentence).toContain(sentence);
    expect(found.lines.join("\n")).toContain(line);
    expect(found.lines.length).toBeLessThanOrEqual(3);
    expect(found.advice).toContain(advice);
  });

  test("a refusal that the scenario had arranged is not the driver's fault", () => {
    const arranged = structuredClone(results);
    const { at } = of("XF-01", arranged);
    arranged.marks.push({ stack: 1, at: at + 300, what: "fault StopSandbox: fail INTERNAL" });
    const { culprit, sentence } = explain(of("XF-01", arranged), arranged);
    expect(culprit).toBe("unclear");
    expect(sentence).toContain("after something was done on purpose: fault StopSandbox");
  });

  test("a driver that was killed on purpose has not died", () => {
    const killed = structuredClone(results);
    const { at } = of("XF-03", killed);
    killed.marks.push({ stack: 2, at: at + 925, what: "kill driver" });
    expect(explain(of("XF-03", killed), killed).sentence).not.toContain("died");
  });

  test("where nothing tells the processes apart, it says so", () => {
    const bare = { ...of("XF-09"), stack: 0, reason: "expect(received).toBeTrue()" };
    expect(explain(bare, { calls: [] })).toMatchObject({
      culprit: "unclear",
      sentence: expect.stringContaining("does not tell"),
    });
  });
});

test.each([
  ["kill driver", "kill driver"],
  ['fault StopSandbox: {"delayMs":3000,"times":1}', "fault StopSandbox: delay 3.0 s, once"],
  [
    'fault CreateSandbox: {"fail":{"code":8,"message":"no room"},"from":2}',
    'fault CreateSandbox: fail with RESOURCE_EXHAUSTED "no room", from call 2',
  ],
  [
    'fault POST containers/*/stop: {"fail":{"status":500,"message":"broken"},"times":2}',
    'fault POST containers/*/stop: fail with 500 "broken", 2 times',
  ],
  ["fault X: {half", "fault X: {half"],
])("%s is told as %s", (what, words) => {
  expect(markWords(what)).toBe(words);
});

test("a scenario's calls are those of its stack, its time and its sandboxes", () => {
  const { calls } = caseOf(of("LC-02"), results);
  expect(calls.map(({ method }) => method)).toEqual([
    "WatchSandboxes",
    "ValidateSandboxCreate",
    "CreateSandbox",
    "DeleteSandbox",
  ]);
});

describe("on the terminal", () => {
  const red = (from: Results) => from.scenarios.filter(({ verdict }) => isRed(verdict));

  test.each(red(results).map((scenario) => [scenario.id, scenario] as const))(
    "%s fits on a screen",
    (_, scenario) => {
      const text = explainOnTerminal(scenario, results.calls, results);
      expect(text.split("\n").length).toBeLessThanOrEqual(SCREEN_LINES);
      expect(Math.max(...text.split("\n").map((line) => line.length))).toBeLessThanOrEqual(160);
      expect(text).toContain(`-t ${scenario.id}`.replace("-t DC-31", "--only DC-31"));
    },
  );

  test("however much there is to say", () => {
    const large = largeExample(30, 3_000);
    const scenario = red(large)[0]!;
    const long = {
      ...scenario,
      reason: "a line\n".repeat(500),
      harm: "x".repeat(5000),
      engine: Array<string>(50).fill("container"),
      engineCalls: Array<string>(50).fill("+0.40 s  GET info → 200"),
    };
    const text = explainOnTerminal(long, large.calls, large);
    expect(text.split("\n").length).toBeLessThanOrEqual(SCREEN_LINES);
    expect(text.split("\n").at(-1)).toContain("Again:");
  });

  test("colours are there only when asked for, and change no word", () => {
    const plain = explainOnTerminal(of("XF-01"), results.calls, results);
    const coloured = explainOnTerminal(of("XF-01"), results.calls, { ...results, colour: true });
    expect(stripVTControlCharacters(plain)).toBe(plain);
    expect(coloured).not.toBe(plain);
    expect(stripVTControlCharacters(coloured)).toBe(plain);
  });
});
