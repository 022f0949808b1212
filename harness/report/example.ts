// SPDX-License-Identifier: Apache-2.0

/**
 * Results that no run made, for tests of the reports: a small run in which everything goes wrong that can, each thing in
 * a scenario of its own, and runs of any size. The same arguments make the same results.
 */
import {
  type CallRecord,
  count,
  type Mark,
  type PhaseRecord,
  type ProcessSpan,
  type Results,
  type ScenarioResult,
  type Verdict,
} from "./model.ts";

const CLOCK = Date.parse("2026-11-24T12:00:00.000Z");
const stamp = (at: number): string => new Date(CLOCK + at).toISOString();

const UPSTREAM = "openshell_server::compute";

/** A sandbox's id, as like a real one as a report needs. */
const sandboxId = (number: number): string =>
  `46b9b912-ca4c-483e-87c0-${number.toString(16).padStart(12, "0")}`;

type Given = Partial<Omit<ScenarioResult, "title">> & Pick<ScenarioResult, "id"> & { says: string };

/** Collects what a run records, scenario after scenario. */
class Recorder {
  readonly scenarios: ScenarioResult[] = [];
  readonly processes: ProcessSpan[] = [];
  readonly calls: CallRecord[] = [];
  readonly phases: PhaseRecord[] = [];
  readonly marks: Mark[] = [];
  readonly #seq = new Map<number, number>();

  scenario({ id, says, ...rest }: Given): ScenarioResult {
    const scenario: ScenarioResult = {
      suite: "external-podman",
      id,
      title: `${id} ${says}`,
      file: "scenarios/external-podman/lifecycle.test.ts",
      line: 20 + this.scenarios.length * 12,
      verdict: "pass",
      reason: "",
      at: 0,
      ms: 800,
      source: "",
      harm: "",
      expected: "",
      seen: "",
      stack: 1,
      sandboxes: [],
      logs: { gateway: [], driver: [] },
      engine: [],
      engineCalls: [],
      ...rest,
    };
    this.scenarios.push(scenario);
    return scenario;
  }

  call(method: string, at: number, ms: number | undefined, rest: Partial<CallRecord> = {}): CallRecord {
    const stack = rest.stack ?? 1;
    const seq = (this.#seq.get(stack) ?? 0) + 1;
    this.#seq.set(stack, seq);
    const call: CallRecord = {
      stack,
      seq,
      method,
      at,
      status: ms === undefined ? "" : "OK",
      details: "",
      sandbox: "",
      request: {},
      responses: [],
      ...rest,
      ...(ms !== undefined && { ms }),
    };
    this.calls.push(call);
    return call;
  }

  /** A sandbox is created, becomes Ready, and is deleted. Returns its id. */
  life(number: number, at: number, forMs: number, stack = 1): string {
    const sandbox = sandboxId(number);
    const name = `sandbox-${number}`;
    const body = {
      sandbox: { id: sandbox, name, workspace: "default", spec: { sandbox_token: "<redacted>" } },
    };
    this.call("ValidateSandboxCreate", at + 10, 4, { stack, sandbox, request: body, responses: [{}] });
    this.call("CreateSandbox", at + 20, 110, { stack, sandbox, request: body, responses: [{}] });
    this.call("DeleteSandbox", at + forMs - 90, 80, {
      stack,
      sandbox,
      request: { sandbox_id: sandbox },
      responses: [{ deleted: true }],
    });
    const phase = (what: string, when: number) =>
      this.phases.push({ stack, sandbox, name, phase: what, at: when });
    phase("PROVISIONING", at + 15);
    phase("READY", at + 200);
    phase("DELETING", at + forMs - 92);
    phase("GONE", at + forMs - 5);
    const watch = this.calls.find((call) => call.method === "WatchSandboxes" && call.stack === stack);
    const conditions = [{ type: "Ready", status: "True" }];
    watch?.events?.push(
      {
        at: at + 190,
        sandbox,
        event: { sandbox: { sandbox: { id: sandbox, name, status: { conditions } } } },
      },
      { at: at + forMs - 8, sandbox, event: { deleted: { sandbox_id: sandbox } } },
    );
    return sandbox;
  }

  results(ms: number, real = true): Results {
    return {
      schema: 1,
      run: {
        id: "5eed0001",
        startedAt: stamp(0),
        ms,
        command: "bun harness.ts test external-podman",
        cutOff: false,
        ...(real && { unselected: 167 }),
      },
      stack: {
        gateway: real
          ? { real, label: "openshell-gateway 0.0.112", program: "openshell-gateway" }
          : { real, label: "fake", program: "bun" },
        driver: real
          ? { real, label: "openshell-driver-podman 0.0.112", program: "openshell-driver-podman" }
          : { real, label: "fake", program: "bun" },
        engine: real
          ? { real, label: "podman 5.4.2 (rootful)", program: "podman" }
          : { real, label: "fake", program: "bun" },
        supervisor: real
          ? {
              real,
              label: "openshell-sandbox",
              program: "",
              image: {
                reference: "ghcr.io/nvidia/openshell/supervisor:0.0.112",
                digest: "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
              },
            }
          : { real, label: "fake", program: "bun" },
      },
      machine: { os: "linux", arch: "x64", cpus: 4, memoryMb: 16_384, bun: "1.4.5" },
      contract: "0.0",
      counts: count(this.scenarios),
      leftovers: [],
      scenarios: this.scenarios,
      processes: this.processes,
      calls: this.calls.toSorted((a, b) => a.at - b.at),
      phases: this.phases.toSorted((a, b) => a.at - b.at),
      marks: this.marks,
    };
  }
}

/** How a failure's message ends, as the harness writes it. */
const evidence = "\n\nRPCs between gateway and driver:\n      12 ms  GetCapabilities OK after 3 ms";

/**
 * A small run: every verdict, and ten failures made on purpose, whose ids say what was done. Every report's test uses
 * it, and the pictures of the page are of it.
 */
export function smallExample(): Results {
  const run = new Recorder();
  run.processes.push(
    { name: "test", stack: 0, pid: 100, at: 0, ms: 16_500, ending: "exit code 1", told: false },
    {
      name: "keeper",
      stack: 0,
      pid: 101,
      at: 40,
      readyMs: 60,
      ms: 16_400,
      ending: "exit code 0",
      told: true,
    },
    {
      name: "engine",
      stack: 0,
      pid: 102,
      at: 120,
      readyMs: 180,
      ms: 16_200,
      ending: "exit code 0",
      told: true,
    },
    {
      name: "gateway",
      stack: 1,
      pid: 110,
      at: 320,
      readyMs: 210,
      ms: 15_900,
      ending: "exit code 0",
      told: true,
    },
    {
      name: "driver",
      stack: 1,
      pid: 111,
      at: 330,
      readyMs: 90,
      ms: 15_900,
      ending: "exit code 0",
      told: true,
    },
  );
  run.call("GetCapabilities", 430, 3, { responses: [{ driver_name: "podman", driver_version: "0.0.112" }] });
  run.call("GetGatewayListenerRequirements", 440, 12);
  run.call("WatchSandboxes", 470, 15_700, {
    status: "CANCELLED",
    details: "Cancelled on client",
    events: [],
  });

  passing(run);
  wrongCode(run);
  hangs(run);
  dies(run);
  gatewayWillNotStart(run);
  engineGone(run);
  imageMissing(run);
  leftover(run);
  leaked(run);
  flaky(run);
  wrongSetting(run);
  contract(run);
  return run.results(16_500);
}

function passing(run: Recorder): void {
  const rules = [
    "a created sandbox becomes Ready",
    "a command in a sandbox has its output and its exit code",
    "a stopped sandbox keeps its workspace",
    "a deleted sandbox is gone for everybody",
    "labels choose among sandboxes",
    "a sandbox has the environment that was asked for",
  ];
  for (const [index, says] of rules.entries()) {
    const at = 620 + index * 500;
    const sandbox = run.life(index + 1, at, 480);
    run.scenario({ id: `LC-0${index + 1}`, says, at, ms: 480, sandboxes: [sandbox] });
  }
  run.marks.push({ stack: 1, at: 1640, what: "fault StopSandbox: delay 300ms" });
  run.scenario({
    id: "LC-09",
    says: "a sandbox with a GPU sees it",
    verdict: "skip",
    reason: "the driver does not advertise GPUs",
    at: 3700,
    ms: 0,
    stack: 0,
  });
}

function wrongCode(run: Recorder): void {
  const at = 3800;
  const sandbox = run.life(20, at, 900);
  run.call("StopSandbox", at + 400, 132, {
    sandbox,
    status: "INTERNAL",
    details: "podman API error (500): container state improper",
    request: { sandbox_id: sandbox },
  });
  run.scenario({
    id: "XF-01",
    says: "a sandbox that is stopped twice stays stopped",
    verdict: "fail",
    reason: `13 INTERNAL: stop sandbox failed: podman API error (500): container state improper${evidence}`,
    at,
    ms: 900,
    failedMs: 540,
    source: "proto/v0.0/compute_driver.proto, StopSandbox",
    harm: "A user cannot stop a sandbox that has just ended by itself.",
    sandboxes: [sandbox],
    logs: {
      gateway: [
        `${stamp(at + 398)}  INFO ${UPSTREAM}: Sandbox phase changed sandbox_id=${sandbox} old_phase=Ready new_phase=Stopping`,
        `${stamp(at + 533)} ERROR ${UPSTREAM}: stop sandbox failed error=podman API error (500): container state improper`,
      ],
      driver: [
        `${stamp(at + 401)}  INFO openshell_driver_podman: Stopping sandbox container sandbox_id=${sandbox}`,
        `${stamp(at + 531)} ERROR openshell_driver_podman: podman API error (500): container state improper`,
      ],
    },
    engine: ["openshell-default--sandbox-20 exited with code 0, said nothing"],
    engineCalls: [
      "+0.40 s  POST containers/openshell-default--sandbox-20/stop → 500",
      "+0.54 s  GET containers/openshell-default--sandbox-20/json → 200",
    ],
  });
}

function hangs(run: Recorder): void {
  const at = 4800;
  const sandbox = sandboxId(21);
  run.call("ValidateSandboxCreate", at + 10, 3, { sandbox });
  // As it is recorded: the call ended when the gateway was taken down.
  run.call("CreateSandbox", at + 20, 11_400, {
    ...{ sandbox, stack: 1 },
    ...{ status: "CANCELLED", details: "Cancelled on client" },
  });
  run.phases.push({ stack: 1, sandbox, name: "sandbox-21", phase: "PROVISIONING", at: at + 12 });
  run.scenario({
    id: "XF-02",
    says: "one sandbox that takes long does not hold up the others",
    verdict: "fail",
    reason: `The scenario: not within 11000 ms${evidence}`,
    at,
    ms: 11_500,
    failedMs: 11_000,
    sandboxes: [sandbox],
    logs: {
      gateway: [],
      driver: [`${stamp(at + 22)}  INFO openshell_driver_podman: Pulling image localhost/sb:1`],
    },
  });
}

function dies(run: Recorder): void {
  const at = 5000;
  run.processes.push(
    {
      name: "gateway",
      stack: 2,
      pid: 120,
      at: at + 20,
      readyMs: 190,
      ms: 2300,
      ending: "exit code 0",
      told: true,
    },
    {
      name: "driver",
      stack: 2,
      pid: 121,
      at: at + 30,
      readyMs: 80,
      ms: 900,
      ending: "signal SIGABRT",
      told: false,
    },
  );
  const sandbox = sandboxId(22);
  run.call("GetCapabilities", at + 130, 4, { stack: 2 });
  run.call("CreateSandbox", at + 840, 88, {
    stack: 2,
    sandbox,
    status: "UNAVAILABLE",
    details: "Connection dropped",
  });
  run.phases.push({ stack: 2, sandbox, name: "sandbox-22", phase: "PROVISIONING", at: at + 830 });
  run.scenario({
    id: "XF-03",
    says: "a driver outlives a request that it cannot serve",
    verdict: "fail",
    reason: `14 UNAVAILABLE: create sandbox failed: Connection dropped${evidence}`,
    at,
    ms: 2400,
    stack: 2,
    sandboxes: [sandbox],
    logs: {
      gateway: [
        `${stamp(at + 930)}  WARN ${UPSTREAM}: watch stream ended, reopening error=Connection dropped`,
      ],
      driver: [
        `${stamp(at + 842)}  INFO openshell_driver_podman: Creating sandbox container sandbox_id=${sandbox}`,
        "thread 'tokio-runtime-worker' panicked at crates/driver-podman/src/spec.rs:212:",
        "called `Option::unwrap()` on a `None` value",
      ],
    },
    engine: [],
  });
}

function gatewayWillNotStart(run: Recorder): void {
  const at = 7500;
  run.processes.push(
    { name: "gateway", stack: 3, pid: 130, at: at + 20, ms: 60, ending: "exit code 1", told: false },
    {
      name: "driver",
      stack: 3,
      pid: 131,
      at: at + 30,
      readyMs: 70,
      ms: 400,
      ending: "exit code 0",
      told: true,
    },
  );
  run.scenario({
    id: "XF-04",
    says: "a gateway starts with a driver whose name has a dot",
    verdict: "fail",
    reason:
      "gateway: answer on 127.0.0.1:33875: it ended with exit code 1\n" +
      "  last seen: connect ECONNREFUSED 127.0.0.1:33875\n" +
      "  | Error:   × invalid compute driver name 'ext.podman'. use ASCII letters, digits, '-' or '_'",
    at,
    ms: 480,
    stack: 3,
  });
}

function engineGone(run: Recorder): void {
  const at = 8100;
  const sandbox = sandboxId(24);
  run.call("CreateSandbox", at + 50, 7, {
    sandbox,
    status: "UNAVAILABLE",
    details: "Cannot connect to Podman: /run/podman/podman.sock: connection refused",
  });
  run.scenario({
    id: "XF-05",
    says: "a sandbox can be created after an hour of rest",
    verdict: "fail",
    reason: `13 INTERNAL: create sandbox failed: Cannot connect to Podman: /run/podman/podman.sock: connection refused${evidence}`,
    at,
    ms: 300,
    sandboxes: [sandbox],
  });
}

function imageMissing(run: Recorder): void {
  const at = 8500;
  const sandbox = sandboxId(25);
  run.call("CreateSandbox", at + 50, 240, {
    sandbox,
    status: "INTERNAL",
    details: "podman API error (500): image pull failed: localhost/sb:2: image not known",
  });
  run.scenario({
    id: "XF-06",
    says: "a sandbox runs what it was asked to run",
    verdict: "fail",
    reason: `13 INTERNAL: create sandbox failed: podman API error (500): image pull failed: localhost/sb:2: image not known${evidence}`,
    at,
    ms: 350,
    sandboxes: [sandbox],
  });
}

function leftover(run: Recorder): void {
  const at = 9000;
  const sandbox = run.life(26, at, 700);
  run.scenario({
    id: "XF-07",
    says: "a sandbox that was removed behind the driver's back leaves nothing",
    verdict: "fail",
    reason: `Left behind:\n  volume openshell-sandbox-${sandbox}-workspace\n  secret openshell-token-${sandbox}`,
    at,
    ms: 2700,
    source: "https://github.com/NVIDIA/OpenShell/issues/2352",
    harm: "Disks fill up with the workspaces of sandboxes that are long gone.",
    sandboxes: [sandbox],
  });
}

function leaked(run: Recorder): void {
  const at = 11_800;
  const sandbox = run.life(27, at, 700);
  run.scenario({
    id: "XF-08",
    says: "a sandbox's token is in no environment, answer or log",
    file: "scenarios/external-podman/security.test.ts",
    verdict: "fail",
    reason: `expect(received).toEqual(expected)\n\n  {\n-   "token": false,\n+   "token": true,\n    "where": "the logs of the run",\n  }\n\n- Expected  - 1\n+ Received  + 1\n${evidence}`,
    at,
    ms: 700,
    failedMs: 600,
    expected: '"token": false',
    seen: '"token": true',
    sandboxes: [sandbox],
    logs: {
      gateway: [
        `${stamp(at + 15)}  INFO ${UPSTREAM}: Sandbox phase changed sandbox_id=${sandbox} new_phase=Ready`,
      ],
      driver: [`${stamp(at + 22)} DEBUG openshell_driver_podman: spec sandbox_token=<token>`],
    },
  });
}

function flaky(run: Recorder): void {
  const at = 12_600;
  const sandbox = run.life(28, at, 700);
  run.scenario({
    id: "XF-09",
    says: "a started sandbox is Ready again",
    verdict: "fail",
    reason: `expect(received).toBe(expected)\n\nExpected: "READY"\nReceived: "STARTING"${evidence}`,
    at,
    ms: 700,
    failedMs: 600,
    times: { run: 20, failed: 3 },
    expected: '"READY"',
    seen: '"STARTING"',
    sandboxes: [sandbox],
    engine: ["openshell-default--sandbox-28 running"],
  });
}

function wrongSetting(run: Recorder): void {
  run.scenario({
    id: "XF-10",
    says: "a sandbox has the image of its template",
    verdict: "error",
    reason:
      "OPENSHELL_SANDBOX_IMAGE: no such image on the engine: localhost/sandbox:1. Build it: tasks/podman/sandbox-image",
    at: 13_400,
    ms: 3,
    stack: 0,
  });
}

function contract(run: Recorder): void {
  const about = { suite: "driver-contract", file: "scenarios/driver-contract/d-create.ts", stack: 4 };
  run.processes.push({
    name: "driver",
    stack: 4,
    pid: 141,
    at: 13_420,
    readyMs: 60,
    ms: 1500,
    ending: "exit code 0",
    told: true,
  });
  for (const [index, says] of [
    "a created sandbox is listed",
    "an empty id is refused",
    "a watch begins with what is there",
  ].entries())
    run.scenario({ ...about, id: `DC-2${index}`, says, at: 13_500 + index * 60, ms: 50 });
  run.scenario({
    ...about,
    id: "DC-30",
    says: "a duplicate create is refused with ALREADY_EXISTS",
    verdict: "known",
    reason:
      "A duplicate create answers INTERNAL, https://github.com/NVIDIA/OpenShell/issues/2352\nexpected ALREADY_EXISTS\n     saw INTERNAL",
    at: 13_700,
    ms: 130,
  });
  run.scenario({
    ...about,
    id: "DC-31",
    says: "a name that the engine cannot have is refused with INVALID_ARGUMENT",
    verdict: "fail",
    reason: "expected INVALID_ARGUMENT\n     saw FAILED_PRECONDITION: name contains invalid characters",
    source: "proto/v0.0/compute_driver.proto, ValidateSandboxCreate",
    harm: "A user cannot tell a typing error from a state of the system.",
    expected: "INVALID_ARGUMENT",
    seen: "FAILED_PRECONDITION: name contains invalid characters",
    at: 13_840,
    ms: 40,
  });
  run.scenario({
    ...about,
    id: "DC-90",
    says: "a driver says which resources it can give",
    verdict: "older",
    reason: "the driver has no GetResources: an older contract",
    at: 13_900,
    ms: 6,
  });
  run.scenario({
    suite: "disruption",
    id: "DI-01",
    says: "a driver that was killed is used again once it is back",
    file: "scenarios/external-podman/disruption/driver.test.ts",
    verdict: "cut",
    reason: "the run was cut off",
    at: 14_200,
    ms: 0,
  });
  run.marks.push({ stack: 4, at: 0, what: "fault DeleteWorkspace: delay 10ms", standing: true });
  for (const [at, what] of [
    [14_300, "kill driver"],
    [14_900, "start driver"],
  ] as const)
    run.marks.push({ stack: 1, at, what });
}

const METHODS = [
  "GetSandbox",
  "ListSandboxes",
  "StopSandbox",
  "StartSandbox",
  "ValidateSandboxCreate",
] as const;

/**
 * A run of any size: scenarios four at a time on four stacks, some of them red, with that many calls between them.
 * @param seed the same one makes the same run.
 */
export function largeExample(scenarios = 300, calls = 20_000, seed = 1): Results {
  const run = new Recorder();
  const random = generator(seed);
  const lanes = [200, 200, 200, 200];
  for (const stack of [1, 2, 3, 4]) run.call("WatchSandboxes", 190, 60_000, { stack, events: [] });
  const perScenario = Math.max(3, Math.floor((calls - 12) / scenarios));
  for (let index = 0; index < scenarios; index++) {
    const lane = lanes.indexOf(Math.min(...lanes));
    const at = lanes[lane]!;
    const ms = 600 + Math.round(random() * 2400);
    const stack = lane + 1;
    const sandbox = run.life(index + 100, at, ms, stack);
    const verdict = verdictOf(index);
    for (let number = 3; number < perScenario; number++) {
      const method = METHODS[Math.floor(random() * METHODS.length)]!;
      const failed = verdict === "fail" && number === perScenario - 1;
      run.call(method, at + 200 + random() * (ms - 320), 1 + random() ** 4 * 200, {
        stack,
        sandbox,
        request: { sandbox_id: sandbox },
        responses: failed
          ? []
          : [{ sandbox: { id: sandbox, name: `sandbox-${index + 100}`, workspace: "default" } }],
        ...(failed && { status: "INTERNAL", details: "podman API error (500): container state improper" }),
      });
    }
    run.scenario({
      id: `SC-${String(index + 1).padStart(3, "0")}`,
      says: `requirement number ${index + 1} of a long list is met, whatever the weather`,
      verdict,
      reason:
        verdict === "pass"
          ? ""
          : verdict === "fail"
            ? `13 INTERNAL: container state improper${evidence}`
            : `${verdict}, for the sake of the example`,
      at,
      ms,
      stack,
      sandboxes: [sandbox],
      ...(verdict === "fail" && {
        logs: {
          gateway: Array.from(
            { length: 60 },
            (_, line) =>
              `${stamp(at + line)}  INFO ${UPSTREAM}: line ${line} of what a gateway says sandbox_id=${sandbox}`,
          ),
          driver: Array.from(
            { length: 60 },
            (_, line) =>
              `${stamp(at + line)}  INFO openshell_driver_podman: line ${line} of what a driver says sandbox_id=${sandbox}`,
          ),
        },
        engine: ["openshell-default--sandbox running"],
      }),
    });
    if (index % 25 === 7) run.marks.push({ stack, at: at + ms / 2, what: "kill driver" });
    if (index % 25 === 7) run.marks.push({ stack, at: at + ms / 2 + 90, what: "start driver" });
    lanes[lane] = at + ms + 20;
  }
  const end = Math.max(...lanes);
  run.processes.push({
    name: "engine",
    stack: 0,
    pid: 10,
    at: 20,
    readyMs: 120,
    ms: end,
    ending: "exit code 0",
    told: true,
  });
  for (let stack = 1; stack <= lanes.length; stack++) {
    run.processes.push({
      name: "gateway",
      stack,
      pid: stack * 10,
      at: 60,
      readyMs: 120,
      ms: end,
      ending: "exit code 0",
      told: true,
    });
    run.processes.push({
      name: "driver",
      stack,
      pid: stack * 10 + 1,
      at: 60,
      readyMs: 60,
      ms: end,
      ending: "exit code 0",
      told: true,
    });
  }
  // What the division left over, so that there are as many calls as were asked for.
  for (let number = run.calls.length; number < calls; number++)
    run.call("ListSandboxes", 210 + (number % 1000), 2);
  return run.results(end + 100, false);
}

const verdictOf = (index: number): Verdict =>
  index % 23 === 5 ? "fail" : index % 37 === 9 ? "skip" : index % 61 === 11 ? "known" : "pass";

/** Numbers in [0, 1) that look random and repeat: xorshift32. */
function generator(seed: number): () => number {
  let state = seed | 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}
