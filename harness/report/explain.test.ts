// SPDX-License-Identifier: Apache-2.0

/** Ten failures made on purpose: each must point to the process that is at fault, and say what to do, on one screen. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { stripVTControlCharacters } from "node:util";
import { largeExample, smallExample } from "./example.ts";
import { callLine, caseOf, explain } from "./explain.ts";
import { isRed, type Results, type ScenarioResult } from "./model.ts";
import { explainAll, explainOnTerminal, leftOnTerminal, SCREEN_LINES } from "./terminal.ts";
import { finding } from "./scenario.ts";
import { markWords } from "./mark-words.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

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
      "last words tell why",
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
      "The engine has no image localhost/sb:2",
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
      "A secret is where it must not be: in the driver's log",
      "spec sandbox_token=<token>",
      "in a file",
    ],
    [
      "a scenario that sometimes fails",
      "XF-09",
      "gateway",
      "All 2 calls that crossed the socket ended with OK",
      'expected "READY", saw "STARTING"',
      "It is flaky: it passed 17 of 20 times",
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

  test("a fault that stands for the whole run is what a scenario met", () => {
    const faulty = structuredClone(results);
    const { stack } = of("XF-01", faulty);
    const mark = { stack, at: 0, what: `fault StopSandbox: {"fail":{"code":13}}` };
    faulty.marks = [mark];
    expect(explain(of("XF-01", faulty), faulty).culprit).toBe("driver");
    faulty.marks = [{ ...mark, standing: true }];
    expect(explain(of("XF-01", faulty), faulty).sentence).toContain("on purpose: fault StopSandbox: fail");
  });

  test("a refusal that the scenario had arranged is not the driver's fault", () => {
    const arranged = structuredClone(results);
    const { at } = of("XF-01", arranged);
    arranged.marks.push({ stack: 1, at: at + 300, what: "fault StopSandbox: fail INTERNAL" });
    const { culprit, sentence } = explain(of("XF-01", arranged), arranged);
    expect(culprit).toBe("unclear");
    expect(sentence).toContain("after something was done on purpose: fault StopSandbox");
  });

  test("nor is one that the engine was made to answer", () => {
    const arranged = structuredClone(results);
    const { at } = of("XF-01", arranged);
    const what = 'fault POST containers/*/stop: {"fail":{"status":500,"message":"improper"},"times":1}';
    arranged.marks.push({ stack: 1, at: at + 300, what });
    expect(explain(of("XF-01", arranged), arranged)).toMatchObject({
      culprit: "unclear",
      sentence: expect.stringContaining("after something was done on purpose: fault POST containers/*/stop"),
    });
  });

  test("a driver that was killed on purpose has not died", () => {
    const killed = structuredClone(results);
    const { at } = of("XF-03", killed);
    killed.marks.push({ stack: 2, at: at + 925, what: "kill driver" });
    expect(explain(of("XF-03", killed), killed).sentence).not.toContain("died");
  });

  test("a driver that was killed from outside is shown with the call that was cut short, not with the watch", () => {
    const killed = structuredClone(results);
    const { at, logs } = of("XF-03", killed);
    logs.driver = [];
    const driver = killed.processes.find(({ name, stack }) => name === "driver" && stack === 2)!;
    driver.ending = "signal SIGKILL";
    const call = killed.calls.find(({ stack, status }) => stack === 2 && status === "UNAVAILABLE")!;
    killed.calls.unshift({ ...call, seq: 999, method: "WatchSandboxes", sandbox: "", at: at + 1 });
    const { lines, advice } = explain(of("XF-03", killed), killed);
    expect(lines[0]).toContain(`${call.method} → UNAVAILABLE`);
    expect(advice).toStartWith("A driver must outlive every call. It was killed from outside");
    driver.name = "engine";
    expect(explain(of("XF-03", killed), killed).advice).toStartWith("An engine must");
  });

  test("a driver of an older contract, without GetGatewayListenerRequirements, is not blamed for that", () => {
    const older = structuredClone(results);
    const { at } = of("XF-03", older);
    const call = older.calls.find(({ method }) => method === "GetCapabilities")!;
    older.calls = [
      { ...call, stack: 2, at: at + 1, method: "GetGatewayListenerRequirements", status: "UNIMPLEMENTED" },
    ];
    older.processes = [];
    expect(explain(of("XF-03", older), older).sentence).not.toContain("UNIMPLEMENTED");
  });

  test("a gateway that was killed has no last words: a warning of its start is none", () => {
    const killed = structuredClone(results);
    const { logs } = of("XF-03", killed);
    logs.driver = ["WARN users need no credentials", "INFO one", "INFO two", "INFO three", "INFO four"];
    const driver = killed.processes.find(({ name, stack }) => name === "driver" && stack === 2)!;
    for (const ending of ["signal SIGKILL", "exit code 1"]) {
      driver.ending = ending;
      const { lines, advice } = explain(of("XF-03", killed), killed);
      expect(lines.join("\n")).toEndWith("INFO four");
      expect(advice).not.toContain("last words tell");
    }
    logs.driver.push("ERROR no more room");
    expect(explain(of("XF-03", killed), killed).advice).toContain("last words tell what ended it");
  });

  test("what a scenario still counts on the engine after DeleteSandbox was left by the driver", () => {
    const left = structuredClone(results);
    const scenario = of("XF-09", left);
    delete scenario.failedMs;
    const reason = `expect(received).toEqual(expected)\n\n  {\n    "container": 0,\n-   "volume": 0,\n+   "volume": 1,\n  }\n\n- Expected  - 1\n+ Received  + 1`;
    Object.assign(scenario, { reason, ...finding(reason) });
    const deletion = left.calls.find(
      ({ method, sandbox }) => method === "DeleteSandbox" && scenario.sandboxes.includes(sandbox),
    )!;
    expect(explain(scenario, left)).toMatchObject({
      culprit: "driver",
      sentence: "The driver left something behind: volume. A deleted sandbox must leave nothing.",
      lines: ['-   "volume": 0,', '+   "volume": 1,', expect.stringContaining("DeleteSandbox → OK")],
    });
    left.calls.splice(left.calls.indexOf(deletion), 1);
    expect(explain(scenario, left).sentence).not.toContain("left something behind");
  });

  test("a sandbox that stays in DELETING since no watch said that it is gone points to the driver", () => {
    const stuck = structuredClone(results);
    const scenario = of("XF-09", stuck);
    delete scenario.failedMs;
    const reason = "sandbox box: be gone: not within 10000 ms\nlast seen: it is in DELETING";
    Object.assign(scenario, { reason, ...finding(reason) });
    const [id] = scenario.sandboxes;
    const watch = stuck.calls.find(({ method, stack }) => method === "WatchSandboxes" && stack === 1)!;
    watch.events = watch.events!.filter(({ event }) => !("deleted" in (event as object)));
    expect(explain(scenario, stuck)).toMatchObject({
      culprit: "driver",
      sentence: "The driver deleted the sandbox, and its watch never said that it is gone.",
      lines: [expect.any(String), expect.any(String), expect.stringContaining("DeleteSandbox → OK")],
      advice: expect.stringContaining("events_logfile_max_size"),
    });
    watch.events.push({ at: 0, sandbox: id!, event: { deleted: { sandbox_id: id } } });
    expect(explain(scenario, stuck).culprit).toBe("gateway");
  });

  test("what a server says beside an OK is shown, unless it is OK", () => {
    const [call] = results.calls;
    const ended = { ...call!, method: "StopSandbox", status: "OK", ms: 3 };
    expect(callLine({ ...ended, details: "OK" }, call!.at)).toEndWith("StopSandbox → OK after 3 ms");
    expect(callLine({ ...ended, details: "late" }, call!.at)).toEndWith("OK after 3 ms: late");
  });

  test("what cleaning up met after the failure is not its cause", () => {
    const later = structuredClone(results);
    const scenario = of("XF-09", later);
    const deletion = later.calls.find(
      ({ method, sandbox }) => method === "DeleteSandbox" && scenario.sandboxes.includes(sandbox),
    )!;
    Object.assign(deletion, { status: "INTERNAL", details: "volume is being used" });
    expect(explain(scenario, later).sentence).toContain("All 2 calls");
    expect(explainOnTerminal(scenario, later.calls, later)).not.toContain("DeleteSandbox");
    expect(explain({ ...scenario, failedMs: undefined }, later).sentence).toContain("DeleteSandbox");
  });

  test.each([
    ["a driver that the harness ended while it cleaned up has not died", "signal SIGTERM", true, false],
    ["a driver that left without having been told has, even with exit code 0", "exit code 0", false, true],
  ])("%s", (_, ending, told, isDead) => {
    const ended = structuredClone(results);
    const driver = ended.processes.find(({ name, stack }) => name === "driver" && stack === 2)!;
    Object.assign(driver, { ending, told });
    expect(explain(of("XF-03", ended), ended).sentence.includes("died")).toBe(isDead);
  });

  test.each([
    ["the driver's answers", "driver", "in the driver's answer to CreateSandbox"],
    ["the gateway's events", "gateway", "with the gateway"],
    ["a command's environment", "driver", "in what the driver gave the sandbox's container"],
  ] as const)("a token in %s points to the %s", (where, culprit, place) => {
    const found = structuredClone(results);
    const scenario = of("XF-08", found);
    scenario.reason = scenario.reason.replace("the logs of the run", where);
    const call = found.calls.find(
      ({ method, sandbox }) => method === "CreateSandbox" && scenario.sandboxes.includes(sandbox),
    )!;
    call.responses = [{ note: "<token>" }];
    const { lines, ...rest } = explain(scenario, found);
    expect(rest).toMatchObject({ culprit, sentence: expect.stringContaining(place) });
    expect(lines.join("\n")).toContain(where);
  });

  test.each([
    [
      "a program that is not there is a wrong setting",
      "driver: cannot be started: ENOENT: no such file or directory, posix_spawn './my-driver'\n  command: ./my-driver --socket /run/driver.sock",
      "harness",
      "The driver cannot be started: there is no such program.",
      "command: ./my-driver --socket",
      "the command has the path that was tried",
    ],
    [
      "what is wrong may end with what to set",
      "A socket's path would be 122 bytes, 99 is the most: /long/999/driver/driver.sock\n  Set OPENSHELL_E2E_RUN_DIR to a shorter folder",
      "harness",
      "A setting is wrong: A socket's path would be 122 bytes",
      "",
      "Set OPENSHELL_E2E_RUN_DIR to a shorter folder",
    ],
    [
      "an image that the harness cannot get",
      'The image localhost/none:1 cannot be had (pull policy "missing"): initializing source docker://localhost/none:1',
      "engine",
      "The engine has no image localhost/none:1, and cannot get it.",
      'pull policy "missing"',
      "OPENSHELL_SANDBOX_IMAGE",
    ],
    [
      "an image that a driver's engine cannot get",
      "13 INTERNAL: create sandbox failed: podman API error (500): image pull failed: initializing source docker://localhost/none:1: pinging container registry",
      "engine",
      "The engine has no image localhost/none:1, and cannot get it.",
      "podman API error (500)",
      "OPENSHELL_SUPERVISOR_IMAGE",
    ],
    [
      "a driver that never answers is told apart from one that ends",
      "driver: answer GetCapabilities: not within 5000 ms\n  last seen: 4 DEADLINE_EXCEEDED\n  command: my-driver\n  | INFO Connected to Podman",
      "driver",
      "it did not answer GetCapabilities within 5000 ms",
      "INFO Connected to Podman",
      "how far it got",
    ],
    [
      "one that ends without a word",
      "driver: bind its socket: it ended with exit code 3\n  last seen: driver.sock does not exist\n  command: my-driver --socket /run/0badcafe/25/driver.sock\n  (its log is empty)",
      "driver",
      "it ended with exit code 3 before it could bind its socket",
      "command: my-driver --socket /run/0badcafe/25",
      "Run its command line yourself",
    ],
    [
      "a machine that has no time for anybody",
      "keeper: open its control socket: not within 10000 ms (the machine is overloaded: 193 processes wait for its 2 CPUs)\n  last seen: connect ENOENT",
      "harness",
      "The machine is overloaded: 193 processes wait for its 2 CPUs.",
      "not within 10000 ms",
      "OPENSHELL_E2E_PARALLEL=1",
    ],
  ] as const)("%s", (_, reason, culprit, sentence, line, advice) => {
    const found = explain({ ...of("XF-04"), verdict: "error", stack: 0, reason }, { calls: [] });
    expect(found.culprit).toBe(culprit);
    expect(found.sentence).toContain(sentence);
    expect(found.lines.join("\n")).toContain(line);
    expect(found.lines.join("\n")).not.toContain("last seen");
    expect(found.advice).toContain(advice);
  });

  test("an engine that is gone is not a driver that cannot be reached", () => {
    const gone = structuredClone(results);
    const scenario = of("XF-05", gone);
    const call = gone.calls.find(({ sandbox }) => sandbox === scenario.sandboxes[0])!;
    Object.assign(call, {
      status: "INTERNAL",
      details: "connection error: /run/x/podman.sock: ECONNREFUSED: Was there a typo in the url or port?",
    });
    scenario.reason = `13 INTERNAL: create sandbox failed: ${call.details}`;
    expect(explain(scenario, gone)).toMatchObject({
      culprit: "engine",
      advice: expect.stringContaining("podman --url unix:///run/x/podman.sock info"),
    });
    gone.marks.push({ stack: 1, at: scenario.at, what: 'fault POST containers/create: {"cut":true}' });
    expect(explain(scenario, gone).culprit).not.toBe("engine");
    scenario.engine = ["engine on /run/x/podman.sock: GET containers/json: nobody listens there."];
    expect(explain(scenario, gone).culprit).toBe("engine");
  });

  test("a create that failed is shown, though its scenario never learnt the sandbox's id", () => {
    const { calls } = caseOf({ ...of("XF-06"), sandboxes: [] }, results);
    expect(calls.map(({ method }) => method)).not.toContain("CreateSandbox");
    const unclaimed = structuredClone(results);
    const scenario = of("XF-06", unclaimed);
    scenario.sandboxes = [];
    expect(explain(scenario, unclaimed).lines.join("\n")).toContain("CreateSandbox → INTERNAL");
  });

  test("such a create of another scenario, on the same stack at the same time, is not this one's", () => {
    const beside = structuredClone(results);
    const missing = of("XF-06", beside);
    missing.sandboxes = [];
    const wrong = of("XF-01", beside);
    const reason = 'expect(received).toBe(expected)\n\nExpected: "4"\nReceived: "3"';
    Object.assign(wrong, { at: missing.at - 10, stack: missing.stack, sandboxes: [], reason });
    expect(explain(missing, beside)).toMatchObject({ culprit: "engine" });
    expect(explain(wrong, beside).culprit).not.toBe("engine");
    expect(caseOf(wrong, beside).calls.filter(({ sandbox }) => sandbox !== "")).toEqual([]);
    const text = explainAll({ ...beside, scenarios: [missing, wrong] }, false);
    expect(text).not.toContain("The same:");
  });

  test("a fault of another scenario's calls was not done to this one, unless it makes such calls too", () => {
    const beside = structuredClone(results);
    const scenario = of("XF-09", beside);
    const { stack, at, ms } = scenario;
    beside.scenarios.push({ ...scenario, id: "XX-01", at: at + 1, ms: ms - 1, sandboxes: ["x"] });
    const told = (method: string) => {
      const marks = [{ stack, at: at + 2, what: `fault ${method}: {"fail":{"code":13}}` }];
      return explain(scenario, { ...beside, marks }).sentence;
    };
    expect(told("StopSandbox")).not.toContain("on purpose");
    expect(told("CreateSandbox")).toContain("on purpose");
    expect(told("WatchSandboxes")).toContain("on purpose");
  });

  test("a start that was answered with OK and a container that does not run do not go together", () => {
    const started = structuredClone(results);
    const scenario = of("XF-09", started);
    Object.assign(scenario, {
      reason: "sandbox x: reach READY: it is in ERROR\n  phase ERROR\n  Ready=False ContainerExited code 0",
      engine: ["openshell-default--sandbox-28 exited with code 0"],
    });
    expect(explain(scenario, started).culprit).toBe("supervisor");
    const [sandbox = ""] = scenario.sandboxes;
    const call = started.calls.find((each) => each.sandbox === sandbox)!;
    started.calls.push({ ...call, seq: 999, method: "StartSandbox", at: scenario.at + 500, ms: 4 });
    const found = explain(scenario, started);
    expect(found.culprit).toBe("unclear");
    expect(found.lines[0]).toContain("StartSandbox → OK after 4 ms");
  });

  describe("the finding of a comparison", () => {
    const compared = (lines: string, counts: [number, number]) =>
      `expect(received).toEqual(expected)\n\n  {\n${lines}\n  }\n\n- Expected  - ${counts[0]}\n+ Received  + ${counts[1]}`;
    const both = compared(`    "stdout": "",\n-   "exitCode": 4,\n+   "exitCode": 3,`, [1, 1]);
    const added = compared(`+   "extra": 1,\n+   "more": 2,\n+   "most": 3,`, [0, 3]);
    const text = (reason: string) => {
      const scenario = { ...of("XF-09"), stack: 0, reason, ...finding(reason) };
      return { found: explain(scenario, { calls: [] }), screen: explainOnTerminal(scenario, []) };
    };

    test("is both sides, once", () => {
      const { found, screen } = text(both);
      expect(found.lines).toEqual(['-   "exitCode": 4,', '+   "exitCode": 3,']);
      expect(screen.split('"exitCode": 4')).toHaveLength(2);
    });

    test("is what was seen where nothing was expected", () => {
      const { found, screen } = text(added);
      expect(found.lines).toEqual(['saw "extra": 1, "more": 2, "most": 3, which was not expected']);
      expect(screen).toContain('+   "most": 3');
    });

    test("a gateway is not blamed for what was asked at its start, which is about no sandbox", () => {
      const started = structuredClone(results);
      const scenario = of("XF-09", started);
      Object.assign(scenario, { reason: both, ...finding(both) });
      started.calls = started.calls.filter(({ sandbox }) => sandbox === "");
      const { at, stack } = scenario;
      const call = { ...results.calls[0]!, method: "GetCapabilities", sandbox: "", status: "OK", at, stack };
      started.calls.push({ ...call, ms: 2 });
      expect(explain(scenario, started).culprit).toBe("unclear");
    });
  });

  test("logs that are to be read are there, also where nobody is blamed", () => {
    const logs = { gateway: ["INFO a gateway's line"], driver: ["INFO a driver's line"] };
    const bare = { ...of("XF-09"), stack: 0, reason: "expect(received).toBeTrue()", logs };
    const text = explainOnTerminal(bare, []);
    expect(text).toContain("Read both logs");
    expect(text).toContain("a gateway's line");
    expect(text).toContain("a driver's line");
    const none = explainOnTerminal({ ...bare, logs: { gateway: [], driver: [] } }, []);
    expect(none).not.toContain("Read both logs");
    expect(none).toContain("--verbose 1");
  });

  test("a log's last lines are what it says, not its spans nor that it answered", () => {
    const span = 'request{method=POST path="/openshell.v1.OpenShell/GetSandbox" request_id=7}: ';
    const answered = `INFO ${span}openshell_server::multiplex: response status=200 latency_ms=1`;
    const gateway = [`INFO ${span}openshell_server: it begins`, ...Array<string>(9).fill(answered)];
    const reason = "expect(received).toBeTrue()";
    const text = explainOnTerminal({ ...of("XF-09"), stack: 0, reason, logs: { gateway, driver: [] } }, []);
    expect(text).toContain("    INFO openshell_server: it begins");
    expect(text).not.toContain("request{");
    expect(text).not.toContain("status=200");
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
      // What to do is told to its end, over several lines if need be.
      expect(text.replaceAll(/\s+/g, " ")).toContain(explain(scenario, results).advice);
      expect(text).toContain(`-t ${scenario.id}`.replace("-t DC-31", "--only DC-31"));
    },
  );

  test.each(red(results).map((scenario) => [scenario.id, scenario] as const))(
    "%s fits on a narrow one",
    (_, scenario) => {
      const text = explainOnTerminal(scenario, results.calls, { ...results, width: 72 });
      expect(Math.max(...text.split("\n").map((line) => line.length))).toBeLessThanOrEqual(72);
    },
  );

  test("what was left behind is cut to a few lines, each on one", () => {
    const lines = leftOnTerminal(Array<string>(36).fill(`process 7 (${"sh ".repeat(99)}\n)`)).split("\n");
    expect(lines).toHaveLength(12);
    expect(lines.at(-1)).toBe("  and 26 more, which the report has");
    expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(160);
  });

  test("a failure long before the end says after how long it was", () => {
    const long = { ...of("XF-09"), ms: 64_000, failedMs: 4_000 };
    expect(explainOnTerminal(long, [])).toContain("failed after 4.0 s, cleaning up 1 min 00 s");
    expect(explainOnTerminal({ ...long, ms: 4_200 }, [])).not.toContain("cleaning up");
  });

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

  test("failures with the same cause are explained once", () => {
    const many = structuredClone(results);
    const gone = of("XF-05", many);
    many.scenarios = ["EG-01", "EG-02", "EG-03"].map((id) => ({ ...gone, id, title: `${id} it stays` }));
    const text = explainAll(many, false);
    expect(text.split("FAIL ")).toHaveLength(2);
    expect(text).toContain("The same: EG-02, EG-03");
    expect(explainAll({ ...many, scenarios: [] }, false)).toBe("");
    const details = `Cannot connect to Podman at ${"a/very/long/path/".repeat(20)}podman.sock`;
    const long = many.scenarios.map((one) => ({ ...one, reason: `engine on x.sock: connect: ${details}` }));
    const calls = many.calls.map((call) => (call.details ? { ...call, details } : call));
    expect(explainAll({ ...many, calls, scenarios: long }, false)).toContain("The same: EG-02, EG-03");
    many.scenarios[2]!.reason = "it was late";
    expect(explainAll(many, false)).not.toContain("The same: EG-02, EG-03");
    const unlike = many.scenarios.flatMap((one, index) =>
      ["a", "b", "c"].map((id) => ({ ...one, id: `${id}${index}`, stack: 0, reason: "?" })),
    );
    expect(explainAll({ ...many, scenarios: unlike }, false)).toContain(
      "4 more are not explained here: c1, a2, b2, c2",
    );
  });

  test("colours are there only when asked for, and change no word", () => {
    const plain = explainOnTerminal(of("XF-01"), results.calls, results);
    const coloured = explainOnTerminal(of("XF-01"), results.calls, { ...results, colour: true });
    expect(stripVTControlCharacters(plain)).toBe(plain);
    expect(coloured).not.toBe(plain);
    expect(stripVTControlCharacters(coloured)).toBe(plain);
  });
});
