// SPDX-License-Identifier: Apache-2.0

/**
 * What a gateway does under a scripted driver and scripted supervisors, row by row. The same rows hold for the real one:
 * `OPENSHELL_GATEWAY_BIN=.../openshell-gateway bun test fakes/gateway.test.ts`. The few that differ by nature say why.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import * as grpc from "@grpc/grpc-js";
import { streaming, unary } from "../proto/contract.ts";
import type { Struct } from "../proto/v0.0/types/google/protobuf/Struct.ts";
import type { DriverSandboxStatus } from "../proto/v0.0/types/openshell/compute/v1/DriverSandboxStatus.ts";
import type { CreateSandboxRequest } from "../proto/v0.0/types/openshell/v1/CreateSandboxRequest.ts";
import type { ExecSandboxEvent__Output } from "../proto/v0.0/types/openshell/v1/ExecSandboxEvent.ts";
import type { ExecSandboxRequest } from "../proto/v0.0/types/openshell/v1/ExecSandboxRequest.ts";
import type { Sandbox__Output } from "../proto/v0.0/types/openshell/v1/Sandbox.ts";
import type { SandboxStreamEvent__Output } from "../proto/v0.0/types/openshell/v1/SandboxStreamEvent.ts";
import {
  eventually,
  fails,
  freePort,
  hangs,
  isReal,
  Lab,
  ready,
  ScriptedSupervisor,
} from "./gateway/scripted.ts";
import type { Gateway, GatewayOptions, ScriptedDriver } from "./gateway/scripted.ts";

setDefaultTimeout(60_000); // above every deadline in here: a test that times out takes the gateways with it

const { status: code } = grpc;
const NOBODY_LISTENS =
  /^UNAVAILABLE: .*(No such file or directory \(os error 2\)|Connection refused \(os error 111\))/;
const CALL = { deadlineMs: 20_000 };

// What the rows talk about

const create = async (gateway: Gateway, request: CreateSandboxRequest = {}): Promise<Sandbox__Output> =>
  (await unary(gateway.client, gateway.client.CreateSandbox, { spec: {}, ...request }, CALL)).sandbox!;

const get = async (gateway: Gateway, name: string): Promise<Sandbox__Output> =>
  (await unary(gateway.client, gateway.client.GetSandbox, { name }, CALL)).sandbox!;

const stop = (gateway: Gateway, name: string) =>
  unary(gateway.client, gateway.client.StopSandbox, { name }, CALL);
const start = (gateway: Gateway, name: string) =>
  unary(gateway.client, gateway.client.StartSandbox, { name }, CALL);
const remove = (gateway: Gateway, name: string) =>
  unary(gateway.client, gateway.client.DeleteSandbox, { name }, CALL);

/** The error of a call that must fail, as "CODE_NAME: message". */
async function refusal(call: Promise<unknown>): Promise<string> {
  try {
    return `OK: ${Bun.inspect(await call)}`;
  } catch (error) {
    const { code: number, details } = error as grpc.ServiceError;
    return `${code[number]}: ${details}`;
  }
}

const phase = (sandbox: Sandbox__Output) => sandbox.status!.phase.replace("SANDBOX_PHASE_", "");

/** "READY True/DependenciesReady": the phase and the Ready condition. */
function state(sandbox: Sandbox__Output): string {
  const condition = sandbox.status!.conditions.find(({ type }) => type === "Ready");
  return `${phase(sandbox)} ${condition ? `${condition.status}/${condition.reason}` : "-"}`;
}

async function reaches(gateway: Gateway, name: string, wanted: string): Promise<Sandbox__Output> {
  let last: Sandbox__Output | undefined;
  return await eventually(
    `${name} to be ${wanted}`,
    async () => {
      last = await get(gateway, name);
      return state(last).startsWith(wanted) ? last : undefined;
    },
    { lastSeen: () => last && state(last) },
  );
}

const gone = (gateway: Gateway, name: string) =>
  eventually(`${name} to be gone`, async () => {
    const answer = await refusal(get(gateway, name));
    return answer === "NOT_FOUND: sandbox not found" ? answer : undefined;
  });

/** One gateway with its driver, for rows that leave it as they found it. */
class Bench {
  supervisors = new Map<string, ScriptedSupervisor>();

  private constructor(
    readonly lab: Lab,
    readonly driver: ScriptedDriver,
    public gateway: Gateway,
  ) {}

  static async start(options: GatewayOptions = {}, answers: ScriptedDriver["answers"] = {}): Promise<Bench> {
    const lab = new Lab();
    const driver = await lab.listen(answers);
    const bench = new Bench(lab, driver, await lab.start(options));
    await eventually("the watch to open", () => driver.watching() || undefined);
    return bench;
  }

  /** Opens a session for a sandbox that was created. */
  async supervise(id: string, instanceId?: string): Promise<ScriptedSupervisor> {
    const token = this.driver.created.get(id)!.spec!.sandbox_token;
    const supervisor = new ScriptedSupervisor(this.gateway.client, id, token, instanceId);
    this.supervisors.set(id, supervisor);
    await supervisor.accepted();
    return supervisor;
  }

  async ready(request: CreateSandboxRequest = {}) {
    const { id, name } = (await create(this.gateway, request)).metadata!;
    const supervisor = await this.supervise(id);
    await reaches(this.gateway, name, "READY");
    return { id, name, supervisor };
  }

  /** Reports a snapshot, and returns the sandbox once the gateway has applied it: events are applied in order. */
  async report(
    id: string,
    name: string,
    status: DriverSandboxStatus | null,
    reportedName = name,
  ): Promise<Sandbox__Output> {
    const call = this.gateway.client.WatchSandbox({ id, follow_events: true });
    const events = streaming(call);
    await events.next();
    this.driver.send({ sandbox: { sandbox: this.driver.snapshot(id, status, reportedName) } });
    this.driver.send({ platform_event: { sandbox_id: id, event: { reason: "Marker" } } });
    for await (const { event } of events) if (event?.reason === "Marker") break;
    return await get(this.gateway, name);
  }

  close = () => this.lab.close();
  [Symbol.asyncDispose] = () => this.close();
}

async function exec(gateway: Gateway, request: ExecSandboxRequest) {
  return await collect(streaming(gateway.client.ExecSandbox(request, { deadline: Date.now() + 20_000 })));
}

async function collect(events: AsyncIterable<ExecSandboxEvent__Output>) {
  const result = { stdout: "", stderr: "", exitCode: undefined as number | undefined };
  for await (const { stdout, stderr, exit } of events) {
    result.stdout += stdout?.data.toString() ?? "";
    result.stderr += stderr?.data.toString() ?? "";
    if (exit) result.exitCode = exit.exit_code;
  }
  return result;
}

// Rows on one gateway

describe("with a driver and a supervisor", () => {
  let bench: Bench;
  beforeAll(async () => void (bench = await Bench.start()));
  afterAll(() => bench?.close());

  describe("the phase", () => {
    test("a session makes a sandbox Ready, with no word from the driver", async () => {
      const { name, supervisor } = await bench.ready();
      const sandbox = await get(bench.gateway, name);
      expect(state(sandbox)).toBe("READY True/DependenciesReady");
      expect(sandbox.status!.main_process_instance_id).toBe("instance-1");
      expect((await supervisor.accepted()).session_accepted!.heartbeat_interval_secs).toBe(15);
    });

    const harmless: [string, DriverSandboxStatus][] = [
      ["Ready=Unknown", { conditions: [ready("Unknown")] }],
      ["Ready=False with a transient reason", { conditions: [ready("False", "Starting")] }],
      ["the same reason in lower case", { conditions: [ready("False", "containerstarting")] }],
      ["no condition at all", { conditions: [] }],
    ];
    for (const [what, status] of harmless) {
      test(`${what} leaves a sandbox with a session Ready`, async () => {
        const { id, name } = await bench.ready();
        expect(state(await bench.report(id, name, status))).toBe("READY True/DependenciesReady");
      });
    }

    test("a session that closes makes it Provisioning again", async () => {
      const { name, supervisor } = await bench.ready();
      supervisor.close();
      await reaches(bench.gateway, name, "PROVISIONING False/DependenciesNotReady");
    });

    test("Ready=True without a session is Provisioning", async () => {
      const { id, name } = (await create(bench.gateway)).metadata!;
      const sandbox = await bench.report(id, name, {
        conditions: [ready("True")],
        instance_id: "container-1",
      });
      expect(state(sandbox)).toBe("PROVISIONING False/SupervisorNotConnected");
      expect(sandbox.status!.agent_pod).toBe("container-1");
      expect(sandbox.status!.sandbox_name).toBe(name);
    });

    const final: [string, DriverSandboxStatus][] = [
      ["Ready=False/Pulling", { conditions: [ready("False", "Pulling")] }],
      ["Ready=False without a reason", { conditions: [ready("False")] }],
      ["Ready=false in lower case", { conditions: [ready("false", "Unschedulable")] }],
      ["Ready=False/ContainerExited", { conditions: [ready("False", "ContainerExited")] }],
    ];
    for (const [what, status] of final) {
      test(`${what} is an Error, and a later Ready=True does not revive it`, async () => {
        const { id, name } = await bench.ready();
        expect(phase(await bench.report(id, name, status))).toBe("ERROR");
        expect(phase(await bench.report(id, name, { conditions: [ready("True")] }))).toBe("ERROR");
        expect(await refusal(stop(bench.gateway, name))).toBe(
          "FAILED_PRECONDITION: sandbox must be Ready to stop (current phase: Error)",
        );
        expect(await refusal(start(bench.gateway, name))).toBe(
          "FAILED_PRECONDITION: sandbox must be Stopped to start (current phase: Error)",
        );
        expect(await remove(bench.gateway, name)).toEqual({ deleted: true });
      });
    }

    test("a condition `ready` in lower case does not count, and is listed beside Ready=True", async () => {
      const { id, name } = await bench.ready();
      const sandbox = await bench.report(id, name, {
        conditions: [{ type: "ready", status: "False", reason: "Boom" }],
      });
      expect(phase(sandbox)).toBe("READY");
      expect(sandbox.status!.conditions.map(({ type, status }) => `${type}=${status}`)).toEqual([
        "ready=False",
        "Ready=True",
      ]);
    });

    test("Suspended=True stops a Ready sandbox, and a stop then answers OK without asking the driver", async () => {
      const { id, name } = await bench.ready();
      expect(
        phase(await bench.report(id, name, { conditions: [{ type: "suspended", status: "true" }] })),
      ).toBe("STOPPED");
      const before = bench.driver.called("StopSandbox").length;
      expect(phase((await stop(bench.gateway, name)).sandbox!)).toBe("STOPPED");
      expect(bench.driver.called("StopSandbox").length).toBe(before);
    });

    test("the deleting flag is Deleting: snapshots no longer count, a stop is refused", async () => {
      const { id, name } = await bench.ready();
      expect(phase(await bench.report(id, name, { deleting: true }))).toBe("DELETING");
      expect(phase(await bench.report(id, name, { conditions: [ready("False", "Boom")] }))).toBe("DELETING");
      expect(await refusal(stop(bench.gateway, name))).toBe(
        "FAILED_PRECONDITION: sandbox must be Ready to stop (current phase: Deleting)",
      );
    });

    test("a snapshot of an unknown sandbox, or without a status, changes nothing", async () => {
      const { id, name } = await bench.ready();
      bench.driver.send({
        sandbox: { sandbox: bench.driver.snapshot("nobody", { conditions: [ready("True")] }, "nobody") },
      });
      expect(state(await bench.report(id, name, null))).toBe("READY True/DependenciesReady");
      expect(await refusal(get(bench.gateway, "nobody"))).toBe("NOT_FOUND: sandbox not found");
    });

    test("a snapshot with another name is refused as a whole", async () => {
      const { id, name } = await bench.ready();
      const sandbox = await bench.report(id, name, { conditions: [ready("False", "Boom")] }, "renamed");
      expect(sandbox.metadata!.name).toBe(name);
      expect(state(sandbox)).toBe("READY True/DependenciesReady");
      expect(await refusal(get(bench.gateway, "renamed"))).toBe("NOT_FOUND: sandbox not found");
      expect(bench.gateway.log()).toContain("sandbox name cannot be changed after creation");
    });

    test("a Deleted event removes a Ready sandbox", async () => {
      const { id, name } = await bench.ready();
      bench.driver.send({ deleted: { sandbox_id: id } });
      await gone(bench.gateway, name);
    });

    test("the main process's end is an Error, exit code 0 included, and reports of another instance are ignored", async () => {
      const { id, name, supervisor } = await bench.ready();
      const exited = (instance_id: string, exit_code: number) =>
        unary(
          bench.gateway.client,
          bench.gateway.client.ReportMainProcessExit,
          { sandbox_id: id, instance_id, exit_code },
          {
            ...CALL,
            metadata: supervisor.metadata(),
          },
        );
      await exited("another", 1);
      expect(phase(await get(bench.gateway, name))).toBe("READY");
      await exited("instance-1", 0);
      const sandbox = await get(bench.gateway, name);
      expect(state(sandbox)).toBe("ERROR False/MainProcessExited");
      expect(sandbox.status!.exit_code).toBe(0);
    });

    test("a new session supersedes the old one, whose end then changes nothing", async () => {
      const { id, name, supervisor } = await bench.ready();
      const second = await bench.supervise(id, "instance-2");
      await eventually("the old session to end", () => supervisor.ended);
      supervisor.close();
      expect((await reaches(bench.gateway, name, "READY")).status!.main_process_instance_id).toBe(
        "instance-2",
      );
      second.close();
      await reaches(bench.gateway, name, "PROVISIONING");
    });
  });

  describe("stop and start", () => {
    test("a stop answers Stopped and ends the session; a start is Starting until a new session", async () => {
      const { id, name, supervisor } = await bench.ready();
      expect(state((await stop(bench.gateway, name)).sandbox!)).toBe("STOPPED False/Stopped");
      await eventually("the session to end", () => supervisor.ended);
      expect(phase(await bench.report(id, name, { conditions: [ready("True")] }))).toBe("STOPPED");
      expect(state((await start(bench.gateway, name)).sandbox!)).toBe("STARTING False/Starting");
      await bench.supervise(id, "instance-2");
      await reaches(bench.gateway, name, "READY");
      expect(phase((await start(bench.gateway, name)).sandbox!)).toBe("READY");
      expect(bench.driver.called("StopSandbox").at(-1)!.request).toMatchObject({
        sandbox_id: id,
        sandbox_name: name,
      });
    });

    test("of two stops at once one reaches the driver, of two starts both do", async () => {
      const { id, name } = await bench.ready();
      const calls = (method: string) =>
        bench.driver.called(method).filter(({ request }) => request.sandbox_id === id).length;
      await Promise.all([stop(bench.gateway, name), stop(bench.gateway, name)]);
      expect(calls("StopSandbox")).toBe(1);
      // The second finds it Starting, not Ready, and drives it again.
      await Promise.all([start(bench.gateway, name), start(bench.gateway, name)]);
      expect(calls("StartSandbox")).toBe(2);
    });

    test("neither is possible while Provisioning", async () => {
      const { name } = (await create(bench.gateway)).metadata!;
      expect(await refusal(stop(bench.gateway, name))).toBe(
        "FAILED_PRECONDITION: sandbox must be Ready to stop (current phase: Provisioning)",
      );
      expect(await refusal(start(bench.gateway, name))).toBe(
        "FAILED_PRECONDITION: sandbox must be Stopped to start (current phase: Provisioning)",
      );
    });

    for (const failure of [code.NOT_FOUND, code.FAILED_PRECONDITION, code.INTERNAL, code.UNAVAILABLE]) {
      test(`a stop that fails with ${code[failure]} keeps the code, and a sandbox that still runs is Ready again`, async () => {
        const { name } = await bench.ready();
        bench.driver.answers.StopSandbox = fails(failure, "no way");
        try {
          expect(await refusal(stop(bench.gateway, name))).toBe(
            `${code[failure]}: stop sandbox failed: no way`,
          );
        } finally {
          delete bench.driver.answers.StopSandbox;
        }
        expect(state(await get(bench.gateway, name))).toBe("READY True/DependenciesReady");
      });
    }

    test("a stop that fails with the sandbox out of sight stays Stopping, and can be tried again", async () => {
      const { name } = await bench.ready();
      bench.driver.answers.StopSandbox = fails(code.INTERNAL, "no way");
      bench.driver.answers.GetSandbox = fails(code.UNAVAILABLE, "blind");
      await refusal(stop(bench.gateway, name));
      delete bench.driver.answers.StopSandbox;
      delete bench.driver.answers.GetSandbox;
      expect(phase(await get(bench.gateway, name))).toBe("STOPPING");
      expect(phase((await stop(bench.gateway, name)).sandbox!)).toBe("STOPPED");
    });

    test("a stop that fails although the container has exited is Stopped", async () => {
      const { id, name } = await bench.ready();
      bench.driver.answers.StopSandbox = fails(code.INTERNAL, "timed out");
      bench.driver.answers.GetSandbox = () => ({
        sandbox: bench.driver.snapshot(id, { conditions: [ready("False", "ContainerExited")] }),
      });
      expect(await refusal(stop(bench.gateway, name))).toBe("INTERNAL: stop sandbox failed: timed out");
      delete bench.driver.answers.StopSandbox;
      delete bench.driver.answers.GetSandbox;
      expect(phase(await get(bench.gateway, name))).toBe("STOPPED");
    });
  });

  describe("delete", () => {
    for (const failure of [code.NOT_FOUND, code.FAILED_PRECONDITION, code.UNAVAILABLE]) {
      test(`one that fails with ${code[failure]} is INTERNAL, and a sandbox that still runs is Ready again`, async () => {
        const { name } = await bench.ready();
        bench.driver.answers.DeleteSandbox = fails(failure, "no way");
        try {
          expect(await refusal(remove(bench.gateway, name))).toBe("INTERNAL: delete sandbox failed: no way");
        } finally {
          delete bench.driver.answers.DeleteSandbox;
        }
        expect(state(await get(bench.gateway, name))).toBe("READY True/DependenciesReady");
      });
    }

    test("deleted=false removes the record at once", async () => {
      const { name } = await bench.ready();
      bench.driver.answers.DeleteSandbox = () => ({ deleted: false });
      expect(await remove(bench.gateway, name)).toEqual({ deleted: false });
      delete bench.driver.answers.DeleteSandbox;
      expect(await refusal(get(bench.gateway, name))).toBe("NOT_FOUND: sandbox not found");
    });

    test("deleted=true without an event stays Deleting, and a second delete does not ask the driver", async () => {
      const { id, name } = await bench.ready();
      bench.driver.answers.DeleteSandbox = () => ({ deleted: true });
      expect(await remove(bench.gateway, name)).toEqual({ deleted: true });
      const before = bench.driver.called("DeleteSandbox").length;
      expect(await remove(bench.gateway, name)).toEqual({ deleted: true });
      delete bench.driver.answers.DeleteSandbox;
      expect(bench.driver.called("DeleteSandbox").length).toBe(before);
      expect(phase(await get(bench.gateway, name))).toBe("DELETING");
      bench.driver.send({ deleted: { sandbox_id: id } });
      await gone(bench.gateway, name);
    });
  });

  describe("create", () => {
    for (const failure of [3, 5, 7, 8, 12, 14] as grpc.status[]) {
      test(`one that the driver fails with ${code[failure]} is INTERNAL and leaves no record`, async () => {
        bench.driver.answers.CreateSandbox = fails(failure, "no way");
        const deletes = bench.driver.called("DeleteSandbox").length;
        expect(await refusal(create(bench.gateway, { name: "unmade" }))).toBe(
          "INTERNAL: create sandbox failed: no way",
        );
        delete bench.driver.answers.CreateSandbox;
        expect(await refusal(get(bench.gateway, "unmade"))).toBe("NOT_FOUND: sandbox not found");
        expect(bench.driver.called("DeleteSandbox").length).toBe(deletes);
      });
    }

    test("ALREADY_EXISTS and FAILED_PRECONDITION of the driver keep their codes", async () => {
      bench.driver.answers.CreateSandbox = fails(code.ALREADY_EXISTS, "mine");
      expect(await refusal(create(bench.gateway))).toBe("ALREADY_EXISTS: sandbox already exists");
      bench.driver.answers.CreateSandbox = fails(code.FAILED_PRECONDITION, "not now");
      expect(await refusal(create(bench.gateway))).toBe("FAILED_PRECONDITION: not now");
      delete bench.driver.answers.CreateSandbox;
    });

    for (const failure of [3, 9, 12, 14] as grpc.status[]) {
      test(`ValidateSandboxCreate's ${code[failure]} reaches the user unchanged`, async () => {
        bench.driver.answers.ValidateSandboxCreate = fails(failure, "as I said");
        expect(await refusal(create(bench.gateway))).toBe(`${code[failure]}: as I said`);
        delete bench.driver.answers.ValidateSandboxCreate;
      });
    }

    test("one that hangs holds nobody up, and stays Provisioning", async () => {
      bench.driver.answers.CreateSandbox = hangs;
      const hung = refusal(
        unary(
          bench.gateway.client,
          bench.gateway.client.CreateSandbox,
          { spec: {}, name: "hung" },
          { deadlineMs: 500 },
        ),
      );
      await eventually("the call to reach the driver", () =>
        bench.driver
          .called("CreateSandbox")
          .find(({ request }) => (request.sandbox as { name: string }).name === "hung"),
      );
      delete bench.driver.answers.CreateSandbox;
      await create(bench.gateway);
      expect(phase(await get(bench.gateway, "hung"))).toBe("PROVISIONING");
      expect(await hung).toStartWith("DEADLINE_EXCEEDED");
    });

    test("the driver gets what it needs and no more", async () => {
      const text = (stringValue: string) => ({ stringValue, kind: "stringValue" as const });
      const struct = (fields: Struct["fields"]) => ({
        structValue: { fields },
        kind: "structValue" as const,
      });
      await create(bench.gateway, {
        name: "whole",
        labels: { team: "a" },
        annotations: { note: "b" },
        spec: {
          log_level: "debug",
          environment: { A: "1" },
          command: ["run", "me"],
          policy: { version: 1 },
          template: {
            labels: { l: "1" },
            environment: { B: "2" },
            annotations: { x: "y" },
            runtime_class_name: "fast",
            user_namespaces: true,
            agent_socket: "/agent.sock",
            resources: {
              fields: {
                limits: struct({ cpu: text("2"), memory: text("1Gi"), "nvidia.com/gpu": text("1") }),
              },
            },
            driver_config: {
              fields: {
                "external-test": struct({ mine: text("yes") }),
                podman: struct({ theirs: text("no") }),
              },
            },
          },
        },
      });
      const [asked, made] = ["ValidateSandboxCreate", "CreateSandbox"].map(
        (method) => bench.driver.called(method).at(-1)!.request.sandbox as Record<string, never>,
      );
      expect(made).toMatchObject({
        name: "whole",
        namespace: "",
        workspace: "default",
        status: { sandbox_name: "", instance_id: "", conditions: [], deleting: false },
        spec: {
          log_level: "debug",
          environment: { A: "1" },
          command: ["run", "me"],
          tty: false,
          template: {
            image: "image:default",
            labels: { l: "1" },
            environment: { B: "2" },
            agent_socket_path: "/agent.sock",
            resources: { cpu_request: "", cpu_limit: "2", memory_request: "", memory_limit: "1Gi" },
            driver_config: { fields: { mine: { stringValue: "yes" } } },
            platform_config: {
              fields: {
                runtime_class_name: { stringValue: "fast" },
                annotations: { structValue: { fields: { x: { stringValue: "y" } } } },
                host_users: { boolValue: false },
                resources_raw: {
                  structValue: {
                    fields: {
                      limits: { structValue: { fields: { "nvidia.com/gpu": { stringValue: "1" } } } },
                    },
                  },
                },
              },
            },
          },
        },
      });
      expect(asked).toMatchObject({ name: "whole", spec: { sandbox_token: "" } });
      const { sandbox_token: token } = (made as unknown as { spec: { sandbox_token: string } }).spec;
      const claims = JSON.parse(Buffer.from(token.split(".")[1]!, "base64url").toString());
      expect(claims).toMatchObject({
        sub: `spiffe://openshell/sandbox/${(made as { id: string } | undefined)?.id}`,
        iss: "openshell-gateway:lab",
        aud: "openshell-gateway:lab",
        exp: 0,
      });
    });

    test("without a command the main process is a login shell on a terminal, and the sandbox gets a name", async () => {
      const sandbox = await create(bench.gateway);
      expect(sandbox.spec).toMatchObject({
        command: ["/bin/bash", "-l"],
        tty: true,
        template: { image: "image:default" },
      });
      expect(sandbox.metadata!.name).toMatch(/^[a-z]+(-[a-z0-9]+)*$/);
      expect(sandbox.metadata!.name.length).toBeLessThanOrEqual(19);
      expect(sandbox.metadata).toMatchObject({ workspace: "default", resource_version: "1" });
      expect(state(sandbox)).toBe("PROVISIONING -");
    });

    const spec = (fields: NonNullable<CreateSandboxRequest["spec"]>): CreateSandboxRequest => ({
      spec: fields,
    });
    const refused: [CreateSandboxRequest, string][] = [
      [{ spec: null }, "spec is required"],
      [{ name: "a".repeat(20) }, "name exceeds maximum length (20 > 19)"],
      [{ name: "Upper" }, "name must contain only lowercase alphanumeric characters or hyphens"],
      [{ name: "under_score" }, "name must contain only lowercase alphanumeric characters or hyphens"],
      [{ name: "-front" }, "name must not start or end with a hyphen"],
      [{ name: "back-" }, "name must not start or end with a hyphen"],
      [{ name: "a--b" }, "name must not contain consecutive hyphens"],
      [{ labels: { "": "x" } }, "label key cannot be empty"],
      [{ labels: { "-a": "x" } }, "label key name segment must start with alphanumeric character: '-a'"],
      [
        { labels: { "a!": "x" } },
        "label key name segment contains invalid characters (must be alphanumeric, '-', '_', or '.'): 'a!'",
      ],
      [
        { labels: { "Big/a": "x" } },
        "label key prefix must be a DNS subdomain (lowercase alphanumeric, '-', '.'): 'Big/a'",
      ],
      [
        { labels: { a: "x y" } },
        "label value contains invalid characters (must be alphanumeric, '-', '_', or '.'): 'x y'",
      ],
      [{ labels: { a: "x".repeat(64) } }, `label value exceeds 63 characters: '${"x".repeat(64)}'`],
      [{ annotations: { "a/": "x" } }, "label key name segment cannot be empty: 'a/'"],
      [
        spec({ environment: { "1A": "" } }),
        "spec.environment keys must match ^[A-Za-z_][A-Za-z0-9_]*$; got '1A'",
      ],
      [
        spec({ environment: { OPENSHELL_X: "" } }),
        "spec.environment keys starting with OPENSHELL_ are reserved; got 'OPENSHELL_X'",
      ],
      [
        spec({ environment: { A: "1\n2" } }),
        "spec.environment value for 'A' contains newline or carriage return characters",
      ],
      [
        spec({ environment: { A: "x".repeat(8193) } }),
        "spec.environment value exceeds maximum length (8193 > 8192)",
      ],
      [
        spec({
          environment: Object.fromEntries(Array.from({ length: 129 }, (_, index) => [`A${index}`, ""])),
        }),
        "spec.environment exceeds maximum entries (129 > 128)",
      ],
      [
        spec({ template: { environment: { OPENSHELL_X: "" } } }),
        "spec.template.environment keys starting with OPENSHELL_ are reserved; got 'OPENSHELL_X'",
      ],
      [
        spec({ template: { image: "x".repeat(1025) } }),
        "template.image exceeds maximum length (1025 > 1024)",
      ],
      [
        spec({
          template: {
            driver_config: { fields: { a: { stringValue: "x".repeat(65_536), kind: "stringValue" } } },
          },
        }),
        "template.driver_config serialized size exceeds maximum (65551 > 65536)",
      ],
      [
        spec({
          template: {
            driver_config: { fields: { "external-test": { stringValue: "x", kind: "stringValue" } } },
          },
        }),
        "template.driver_config.external-test must be an object",
      ],
      [spec({ log_level: "x".repeat(33) }), "log_level exceeds maximum length (33 > 32)"],
      [spec({ command: [""] }), "spec.command[0] must not be empty"],
      [spec({ command: ["a\0b"] }), "spec.command[0] contains null bytes"],
      [spec({ resource_requirements: { gpu: { count: 0 } } }), "gpu count must be greater than 0"],
    ];
    test("what is not allowed is refused with its own message", async () => {
      const answers = await Promise.all(refused.map(([request]) => refusal(create(bench.gateway, request))));
      expect(answers).toEqual(refused.map(([, message]) => `INVALID_ARGUMENT: ${message}`));
    });

    test("a name is taken within its workspace, an unknown provider or workspace is refused", async () => {
      await create(bench.gateway, { name: "twice" });
      expect(await refusal(create(bench.gateway, { name: "twice" }))).toBe(
        "ALREADY_EXISTS: sandbox 'twice' already exists",
      );
      expect(await refusal(create(bench.gateway, { spec: { providers: ["x"] } }))).toBe(
        "FAILED_PRECONDITION: provider 'x' not found",
      );
      expect(await refusal(create(bench.gateway, { workspace: "nowhere" }))).toBe(
        "NOT_FOUND: workspace 'nowhere' not found",
      );
    });
  });

  describe("exec", () => {
    test("output, error output and exit code come back; environment and folder travel in the command", async () => {
      const { id, supervisor } = await bench.ready();
      const result = await exec(bench.gateway, {
        sandbox_id: id,
        command: ["sh", "-c", 'echo "$GREETING from $PWD"; echo oops >&2; exit 7'],
        environment: { GREETING: "it's me" },
        workdir: "/tmp",
      });
      expect(result).toEqual({ stdout: "it's me from /tmp\n", stderr: "oops\n", exitCode: 7 });
      expect(supervisor.commands[0]!.command).toBe(
        `cd /tmp && GREETING='it'"'"'s me' sh -c 'echo "$GREETING from $PWD"; echo oops >&2; exit 7'`,
      );
    });

    test("stdin is passed and closed", async () => {
      const { id } = await bench.ready();
      const result = await exec(bench.gateway, {
        sandbox_id: id,
        command: ["cat"],
        stdin: Buffer.from("hello"),
      });
      expect(result).toEqual({ stdout: "hello", stderr: "", exitCode: 0 });
    });

    test("a megabyte of output arrives whole", async () => {
      const { id } = await bench.ready();
      const result = await exec(bench.gateway, {
        sandbox_id: id,
        command: ["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x"],
      });
      expect([result.stdout.length, result.exitCode]).toEqual([1_000_000, 0]);
    });

    test("a command that takes too long ends with exit code 124", async () => {
      const { id } = await bench.ready();
      const result = await exec(bench.gateway, {
        sandbox_id: id,
        command: ["sleep", "30"],
        timeout_seconds: 1,
      });
      expect(result.exitCode).toBe(124);
    });

    test("an interactive run has a terminal that follows the window, and input while it runs", async () => {
      const { id, supervisor } = await bench.ready();
      const call = bench.gateway.client.ExecSandboxInteractive({ deadline: Date.now() + 20_000 });
      const result = collect(streaming(call));
      call.write({ start: { sandbox_id: id, command: ["head", "-n", "2"], tty: true, cols: 100, rows: 30 } });
      call.write({ stdin: Buffer.from("one\n") });
      call.write({ resize: { cols: 120, rows: 40 } });
      await eventually("the new size", () => supervisor.commands[0]?.sizes[1], {
        lastSeen: () => supervisor.commands,
      });
      call.write({ stdin: Buffer.from("two\n") });
      expect(await result).toEqual({ stdout: "one\ntwo\n", stderr: "", exitCode: 0 });
      expect(supervisor.commands[0]!.sizes).toEqual(["100x30", "120x40"]);
    });

    test("an interactive run whose input ends before the command does is cut off", async () => {
      const { id } = await bench.ready();
      const call = bench.gateway.client.ExecSandboxInteractive({ deadline: Date.now() + 20_000 });
      call.write({ start: { sandbox_id: id, command: ["sh", "-c", "cat; sleep 30"] } });
      call.end();
      expect(await refusal(collect(streaming(call)))).toBe(
        "UNAVAILABLE: exec relay closed before the command reported an exit status",
      );
    });

    test("what cannot be run is refused", async () => {
      const { id } = await bench.ready();
      const { id: unready } = (await create(bench.gateway)).metadata!;
      const run = (request: ExecSandboxRequest) => refusal(exec(bench.gateway, request));
      expect(await run({})).toBe("INVALID_ARGUMENT: sandbox_id is required");
      expect(await run({ sandbox_id: id })).toBe("INVALID_ARGUMENT: command is required");
      expect(await run({ sandbox_id: id, command: ["x"], environment: { "1": "" } })).toBe(
        "INVALID_ARGUMENT: environment keys must match ^[A-Za-z_][A-Za-z0-9_]*$",
      );
      expect(await run({ sandbox_id: id, command: ["x"], environment: { OPENSHELL_X: "" } })).toBe(
        "INVALID_ARGUMENT: environment keys starting with OPENSHELL_ are reserved; got 'OPENSHELL_X'",
      );
      expect(await run({ sandbox_id: id, command: ["x"], workdir: "a\nb" })).toBe(
        "INVALID_ARGUMENT: workdir contains newline or carriage return characters",
      );
      expect(await run({ sandbox_id: "nobody", command: ["x"] })).toBe("NOT_FOUND: sandbox not found");
      expect(await run({ sandbox_id: unready, command: ["x"] })).toBe(
        "FAILED_PRECONDITION: sandbox is not ready",
      );
    });

    test("a relay that the supervisor cannot open fails the run with its words", async () => {
      const { id, supervisor } = await bench.ready();
      supervisor.relays = "refused";
      expect(await refusal(exec(bench.gateway, { sandbox_id: id, command: ["true"] }))).toBe(
        "UNAVAILABLE: no SSH here",
      );
    });

    test("a supervisor that dies ends its runs", async () => {
      const { id, supervisor } = await bench.ready();
      const run = refusal(exec(bench.gateway, { sandbox_id: id, command: ["sleep", "30"] }));
      await eventually("the command to start", () => supervisor.commands[0]);
      supervisor.die();
      expect(await run).toBe("UNAVAILABLE: exec relay closed before the command reported an exit status");
    });

    test("a caller who leaves ends an interactive run at its next output, and a plain one never", async () => {
      const { id, supervisor } = await bench.ready();
      const leave = async (call: grpc.ClientReadableStream<ExecSandboxEvent__Output>) => {
        call.on("error", () => {});
        await new Promise((resolve) => call.once("data", resolve));
        call.cancel();
      };
      const interactive = bench.gateway.client.ExecSandboxInteractive();
      const command = ["sh", "-c", "while echo more; do sleep 0.02; done"];
      interactive.write({ start: { sandbox_id: id, command } });
      await leave(interactive);
      await eventually("the channel to close", () => supervisor.commands[0]!.closed || undefined);

      const proof = bench.lab.path("proof");
      const lasting = ["sh", "-c", `echo go; sleep 0.1; echo on; touch ${proof}`];
      await leave(bench.gateway.client.ExecSandbox({ sandbox_id: id, command: lasting }));
      await eventually("the command to finish", () => existsSync(proof) || undefined);
    });
  });

  describe("watch, logs and lists", () => {
    test("a watch shows the sandbox, its platform events, its deletion, and then ends", async () => {
      const { id, name } = await bench.ready();
      const call = bench.gateway.client.WatchSandbox({ id, follow_status: true, follow_events: true });
      const seen: string[] = [];
      for await (const { payload, sandbox, event } of streaming(
        call,
      ) as AsyncIterable<SandboxStreamEvent__Output>) {
        seen.push(payload === "sandbox" ? phase(sandbox!) : event!.reason);
        if (seen.length === 1) {
          bench.driver.send({
            platform_event: { sandbox_id: id, event: { reason: "Pulled", source: "test" } },
          });
        }
        if (seen.length === 2) void remove(bench.gateway, name);
      }
      expect(seen).toEqual(["READY", "Pulled", "DELETING"]);
    });

    test("a watch that follows nothing shows the sandbox once", async () => {
      const { id } = await bench.ready();
      const events = streaming(bench.gateway.client.WatchSandbox({ id, stop_on_terminal: true }));
      expect((await events.next()).value!.payload).toBe("sandbox");
      expect((await events.next()).done).toBe(true);
      const watch = (request: object) =>
        refusal(streaming(bench.gateway.client.WatchSandbox(request)).next());
      expect(await watch({})).toBe("INVALID_ARGUMENT: id is required");
      expect(await watch({ id: "nobody" })).toBe("NOT_FOUND: sandbox not found");
    });

    test("the supervisor's lines and the gateway's own are a sandbox's log", async () => {
      const { id, supervisor } = await bench.ready();
      const { client } = bench.gateway;
      await new Promise<void>((resolve, reject) => {
        const call = client.PushSandboxLogs(supervisor.metadata(), (error) =>
          error ? reject(error) : resolve(),
        );
        call.write({
          sandbox_id: id,
          logs: [
            { level: "WARN", message: "careful", timestamp_ms: 1 },
            { level: "DEBUG", message: "detail" },
          ],
        });
        call.end();
      });
      const logs = async (filter: object) =>
        (await unary(client, client.GetSandboxLogs, { sandbox_id: id, ...filter }, CALL)).logs;
      expect((await logs({ sources: ["sandbox"] })).map(({ message }) => message)).toEqual([
        "careful",
        "detail",
      ]);
      expect((await logs({ sources: ["sandbox"], min_level: "INFO" })).map(({ message }) => message)).toEqual(
        ["careful"],
      );
      expect((await logs({ sources: ["gateway"] })).map(({ message }) => message)).toContain(
        "supervisor session: accepted",
      );
      expect(await logs({ lines: 1 })).toHaveLength(1);
      expect(await refusal(unary(client, client.GetSandboxLogs, {}, CALL))).toBe(
        "INVALID_ARGUMENT: sandbox_id is required",
      );
    });

    test("lists are filtered by label, paged, and by workspace", async () => {
      const { client } = bench.gateway;
      await unary(client, client.CreateWorkspace, { name: "side" }, CALL);
      for (const [name, size] of [
        ["l-1", "s"],
        ["l-2", "m"],
        ["l-3", "m"],
      ]) {
        await create(bench.gateway, { name, labels: { "example.com/size": size!, kind: "listed" } });
      }
      await create(bench.gateway, { name: "l-1", workspace: "side", labels: { kind: "listed" } });
      const names = async (request: object) =>
        (await unary(client, client.ListSandboxes, request, CALL)).sandboxes.map(
          ({ metadata }) => metadata!.name,
        );
      expect(await names({ label_selector: "kind=listed" })).toEqual(["l-1", "l-2", "l-3"]);
      expect(await names({ label_selector: "kind=listed, example.com/size=m" })).toEqual(["l-2", "l-3"]);
      expect(await names({ label_selector: "kind=listed", limit: 1, offset: 1 })).toEqual(["l-2"]);
      expect(await names({ label_selector: "kind=listed", all_workspaces: true })).toEqual([
        "l-1",
        "l-2",
        "l-3",
        "l-1",
      ]);
      expect(await names({ workspace: "side" })).toEqual(["l-1"]);
      const list = (request: object) => refusal(unary(client, client.ListSandboxes, request, CALL));
      expect(await list({ workspace: "side", all_workspaces: true })).toBe(
        "INVALID_ARGUMENT: all_workspaces and workspace are mutually exclusive",
      );
      expect(await list({ label_selector: "kind" })).toBe(
        "INVALID_ARGUMENT: invalid label selector: expected 'key=value', got 'kind'",
      );
    });

    test("a workspace lives until it is empty and deleted", async () => {
      const { client } = bench.gateway;
      const call = (method: "CreateWorkspace" | "GetWorkspace" | "DeleteWorkspace", name: string) =>
        refusal(unary(client, client[method] as typeof client.GetWorkspace, { name }, CALL));
      expect(await call("CreateWorkspace", "Bad")).toBe(
        "INVALID_ARGUMENT: workspace name must contain only lowercase alphanumeric characters or hyphens",
      );
      expect(await call("CreateWorkspace", "")).toBe("INVALID_ARGUMENT: workspace name is required");
      expect(await call("CreateWorkspace", "w")).toStartWith("OK");
      expect(await call("CreateWorkspace", "w")).toBe("ALREADY_EXISTS: workspace already exists");
      expect(await call("DeleteWorkspace", "default")).toBe(
        "FAILED_PRECONDITION: the default workspace cannot be deleted",
      );
      expect(await call("DeleteWorkspace", "nowhere")).toBe("NOT_FOUND: workspace 'nowhere' not found");
      await create(bench.gateway, { name: "inside", workspace: "w" });
      expect(await call("DeleteWorkspace", "w")).toBe(
        "FAILED_PRECONDITION: workspace 'w' still contains resources: sandbox",
      );
      expect(await refusal(create(bench.gateway, { workspace: "w" }))).toBe(
        "FAILED_PRECONDITION: workspace 'w' is being deleted",
      );
      await unary(client, client.DeleteSandbox, { name: "inside", workspace: "w" }, CALL);
      await eventually("w to be deleted", async () =>
        (await call("DeleteWorkspace", "w")).startsWith("OK") ? true : undefined,
      );
      expect(await call("GetWorkspace", "w")).toBe("NOT_FOUND: workspace not found");
      expect(bench.driver.called("DeleteWorkspace").at(-1)!.request).toEqual({ workspace: "w" });
    });

    test("what a request must name, and what is not there", async () => {
      expect(await refusal(get(bench.gateway, ""))).toBe("INVALID_ARGUMENT: name is required");
      for (const call of [get, stop, start, remove]) {
        expect(await refusal(call(bench.gateway, "nobody"))).toBe("NOT_FOUND: sandbox not found");
      }
    });
  });

  describe("who may call what", () => {
    const as = (token: string) => {
      const metadata = new grpc.Metadata();
      metadata.set("authorization", `Bearer ${token}`);
      return { ...CALL, metadata };
    };

    test("a supervisor calls for its own sandbox and no more", async () => {
      const [mine, other] = [await bench.ready(), await bench.ready()];
      const { client } = bench.gateway;
      const options = { ...CALL, metadata: mine.supervisor.metadata() };
      expect(await refusal(unary(client, client.GetSandbox, { name: mine.name }, options))).toBe(
        "PERMISSION_DENIED: sandbox principals may not call this method",
      );
      expect(
        await refusal(unary(client, client.GetSandboxProviderEnvironment, { sandbox_id: other.id }, options)),
      ).toBe("PERMISSION_DENIED: cross-sandbox access denied: principal does not own this sandbox");
      expect(
        await refusal(unary(client, client.GetSandboxProviderEnvironment, { sandbox_id: mine.id }, options)),
      ).toStartWith("OK");
    });

    test("a user may not call for a sandbox, a forged or foreign token is refused", async () => {
      const { id, supervisor } = await bench.ready();
      const { client } = bench.gateway;
      const report = (options: object) =>
        refusal(
          unary(
            client,
            client.ReportMainProcessExit,
            { sandbox_id: id, instance_id: "i" },
            { ...CALL, ...options },
          ),
        );
      expect(await report({})).toBe("PERMISSION_DENIED: this method requires a sandbox principal");
      const token = String(supervisor.metadata().get("authorization")[0]).replace("Bearer ", "");
      const forged = token
        .split(".")
        .with(1, Buffer.from(JSON.stringify({ sandbox_id: "x" })).toString("base64url"))
        .join(".");
      expect(await report(as(forged))).toStartWith("UNAUTHENTICATED: invalid token");
      expect(await report(as("nonsense"))).toStartWith("UNAUTHENTICATED: invalid token");
    });

    test("a refreshed token is as good as the first", async () => {
      const { id, supervisor } = await bench.ready();
      const { client } = bench.gateway;
      const { token } = await unary(
        client,
        client.RefreshSandboxToken,
        {},
        { ...CALL, metadata: supervisor.metadata() },
      );
      const { sandbox_id } = JSON.parse(Buffer.from(token.split(".")[1]!, "base64url").toString());
      expect(sandbox_id).toBe(id);
      expect(
        await refusal(unary(client, client.GetSandboxProviderEnvironment, { sandbox_id: id }, as(token))),
      ).toStartWith("OK");
    });

    test("a session needs a hello, of a sandbox that is there", async () => {
      const { id } = await bench.ready();
      const { token } = { token: bench.driver.created.get(id)!.spec!.sandbox_token };
      const stranger = new ScriptedSupervisor(bench.gateway.client, "nobody", token);
      expect(await eventually("a refusal", () => stranger.ended)).toMatchObject({
        code: code.PERMISSION_DENIED,
      });
      await remove(
        bench.gateway,
        (await get(bench.gateway, bench.driver.created.get(id)!.name)).metadata!.name,
      );
      await gone(bench.gateway, bench.driver.created.get(id)!.name);
      const late = new ScriptedSupervisor(bench.gateway.client, id, token);
      expect(await eventually("a refusal", () => late.ended)).toMatchObject({
        code: code.NOT_FOUND,
        details: "sandbox not found",
      });
    });

    test("a supervisor stores the policy that it found, and reports that it is loaded", async () => {
      const { id, name, supervisor } = await bench.ready();
      const { client } = bench.gateway;
      const options = { ...CALL, metadata: supervisor.metadata() };
      // The real gateway lists unset settings as map entries without a value, which protobufjs cannot decode.
      const config = async (expected: object) => {
        if (isReal) return;
        const answer = await unary(client, client.GetSandboxConfig, { sandbox_id: id }, options);
        expect(answer).toMatchObject(expected);
      };
      await config({ policy: null, version: 0, workspace: "default" });
      const policy = { version: 1, filesystem: { read_only: ["/usr"] } };
      expect(
        await unary(client, client.UpdateConfig, { name, policy, workspace: "default" }, options),
      ).toMatchObject({ version: 1 });
      await config({ policy: { filesystem: { read_only: ["/usr"] } }, version: 1 });
      expect((await get(bench.gateway, name)).spec!.policy).toMatchObject({
        filesystem: { read_only: ["/usr"] },
      });
      await unary(
        client,
        client.ReportPolicyStatus,
        { sandbox_id: id, version: 1, status: "POLICY_STATUS_LOADED" },
        options,
      );
      expect((await get(bench.gateway, name)).status!.current_policy_version).toBe(1);
      expect(await refusal(unary(client, client.UpdateConfig, { name, setting_key: "x" }, options))).toBe(
        "PERMISSION_DENIED: sandbox callers may only perform sandbox policy sync",
      );
    });
  });

  test("the gateway names the driver as configured, and says how it connected", async () => {
    const { client } = bench.gateway;
    expect((await unary(client, client.GetGatewayInfo, {}, CALL)).compute_drivers).toEqual([
      { name: "external-test", capabilities: { driver_name: "scripted", driver_version: "1.2.3" } },
    ]);
    expect(bench.gateway.log()).toContain(
      "Compute driver connected configured_driver=external-test advertised_driver=scripted in_tree=false",
    );
    expect(bench.driver.calls.slice(0, 2).map(({ method }) => method)).toEqual([
      "GetCapabilities",
      "GetGatewayListenerRequirements",
    ]);
  });

  test("health is served on a port of its own", async () => {
    const health = (path: string) => fetch(`http://127.0.0.1:${bench.gateway.healthPort}${path}`);
    expect((await health("/healthz")).status).toBe(200);
    await eventually("/readyz to answer 200", async () =>
      (await health("/readyz")).status === 200 ? true : undefined,
    );
    expect(await (await health("/health")).json()).toMatchObject({
      status: "healthy",
      checks: { database: { status: "healthy" } },
    });
    expect((await health("/other")).status).toBe(404);
  });

  test("three hundred creates and as many snapshots are all taken", async () => {
    const names = Array.from({ length: 300 }, (_, index) => `many-${index}`);
    const waiting = [...names];
    await Promise.all(
      Array.from({ length: 16 }, async () => {
        for (let name = waiting.pop(); name; name = waiting.pop())
          await create(bench.gateway, { name, labels: { many: "yes" } });
      }),
    );
    for (const { id, name } of bench.driver.created.values()) {
      if (!name.startsWith("many-")) continue;
      bench.driver.send({
        sandbox: { sandbox: bench.driver.snapshot(id, { conditions: [ready("False", "Boom")] }) },
      });
    }
    const { client } = bench.gateway;
    await eventually(
      "300 sandboxes in Error",
      async () => {
        const { sandboxes } = await unary(
          client,
          client.ListSandboxes,
          { label_selector: "many=yes", limit: 1000 },
          CALL,
        );
        return sandboxes.filter((sandbox) => phase(sandbox) === "ERROR").length === 300 || undefined;
      },
      { ms: 20_000 },
    );
  });
});

// Rows with a gateway of their own

describe.concurrent("the driver comes and goes", () => {
  test("a watch that ends is opened again after two seconds", async () => {
    await using bench = await Bench.start();
    const endedAt = performance.now();
    bench.driver.endWatches();
    await eventually("a new watch", () => bench.driver.watching() || undefined);
    const waited = bench.driver.called("WatchSandboxes").at(-1)!.at - endedAt;
    expect(waited).toBeGreaterThan(1_900);
    expect(waited).toBeLessThan(3_000);
  });

  test("a driver that dies and returns is used again without a restart, and not asked who it is", async () => {
    await using bench = await Bench.start();
    const { name } = await bench.ready();
    bench.driver.close();
    let last = "";
    await eventually(
      "a create to fail at the socket",
      async () => {
        last = await refusal(create(bench.gateway));
        return NOBODY_LISTENS.test(last) || undefined;
      },
      { lastSeen: () => last },
    );
    expect(phase(await get(bench.gateway, name))).toBe("READY");
    expect(await refusal(stop(bench.gateway, name))).toStartWith("UNAVAILABLE: stop sandbox failed: ");
    expect(phase(await get(bench.gateway, name))).toBe("STOPPING");
    expect(await refusal(remove(bench.gateway, name))).toStartWith("INTERNAL: delete sandbox failed: ");
    expect(phase(await get(bench.gateway, name))).toBe("STOPPING");

    const again = await bench.lab.listen();
    await eventually("a create to work", async () =>
      (await refusal(create(bench.gateway))).startsWith("OK") ? true : undefined,
    );
    await eventually("a new watch", () => again.watching() || undefined);
    expect(again.called("GetCapabilities")).toHaveLength(0);
  });

  test("a driver that is late, or replaces a plain file, is waited for", async () => {
    for (const file of [false, true]) {
      await using lab = new Lab();
      if (file) writeFileSync(lab.socketPath, "");
      const starting = lab.start();
      await Bun.sleep(600); // the lateness itself
      if (file) await Bun.file(lab.socketPath).delete();
      await lab.listen();
      await starting;
    }
  });

  test("a driver that never comes ends the gateway", async () => {
    await using lab = new Lab();
    // The real gateway's 30 s cannot be shortened.
    const seconds = isReal ? "30" : "0.5";
    const { exitCode, message } = await lab.fail({ env: { OPENSHELL_FAKE_DIAL_SECONDS: seconds } });
    expect(message).toBe(
      `execution error: failed to create compute runtime: failed to connect to remote compute driver socket '${lab.socketPath}' within ${seconds}s: transport error`,
    );
    expect(exitCode).toBe(1);
  });
});

describe.concurrent("shutdown and restart", () => {
  test("what runs is stopped and started again, what was stopped stays so", async () => {
    await using bench = await Bench.start();
    const [running, stopped] = [
      await bench.ready({ name: "running" }),
      await bench.ready({ name: "stopped" }),
    ];
    await stop(bench.gateway, stopped.name);
    bench.driver.calls.length = 0;
    expect(await bench.gateway.stop()).toBe(0);
    expect(bench.driver.called("StopSandbox").map(({ request }) => request.sandbox_id)).toEqual([running.id]);

    bench.gateway = await bench.lab.start();
    expect(bench.driver.called("StartSandbox").map(({ request }) => request.sandbox_id)).toEqual([
      running.id,
    ]);
    expect(phase(await get(bench.gateway, "stopped"))).toBe("STOPPED");
    await bench.supervise(running.id, "instance-2");
    await reaches(bench.gateway, "running", "READY");
  });

  test("a sandbox that cannot be stopped is an exit code, one that cannot be started an Error", async () => {
    await using bench = await Bench.start();
    const { name } = await bench.ready();
    bench.driver.answers.StopSandbox = fails(code.INTERNAL, "stuck");
    expect(await bench.gateway.stop()).toBe(1);
    await eventually(
      "the reason",
      () =>
        bench.gateway
          .log()
          .replaceAll(/\n\s*│ ?/g, " ")
          .includes(
            "gateway shutdown cleanup failed: failed to stop 1 sandbox(es) during gateway shutdown",
          ) || undefined,
    );
    bench.driver.answers.StartSandbox = fails(code.INTERNAL, "stuck");
    bench.gateway = await bench.lab.start();
    const sandbox = await get(bench.gateway, name);
    expect(state(sandbox)).toBe("ERROR False/StartFailed");
    expect(sandbox.status!.conditions[0]!.message).toBe(
      "Failed to start sandbox during gateway startup: stuck",
    );
  });

  test("a driver that manages lifecycle itself is left alone", async () => {
    await using bench = await Bench.start({}, { GetCapabilities: () => ({}) });
    await bench.ready();
    expect(await bench.gateway.stop()).toBe(0);
    expect(bench.driver.called("StopSandbox")).toHaveLength(0);
  });

  test("a sandbox whose resource is gone at restart is an Error, an unfinished stop is finished", async () => {
    await using bench = await Bench.start();
    const [lost, stopping] = [await bench.ready(), await bench.ready()];
    bench.driver.answers.StopSandbox = hangs;
    void refusal(stop(bench.gateway, stopping.name));
    await reaches(bench.gateway, stopping.name, "STOPPING");
    await bench.gateway.kill();
    delete bench.driver.answers.StopSandbox;
    bench.driver.answers.StartSandbox = fails(code.NOT_FOUND, "gone");
    bench.gateway = await bench.lab.start();
    expect(state(await get(bench.gateway, lost.name))).toBe("ERROR False/BackendResourceMissing");
    expect(state(await get(bench.gateway, stopping.name))).toBe("STOPPED False/Stopped");
  });
});

describe.concurrent("listeners", () => {
  const requirement = (fields: object) => ({
    GetGatewayListenerRequirements: () => ({ requirements: [{ reason: "why", ...fields }] }),
  });

  test("a further address is opened for sandboxes only, one that is covered already is not", async () => {
    const port = await freePort();
    await using bench = await Bench.start(
      { port },
      {
        GetGatewayListenerRequirements: () => ({
          requirements: [
            { reason: "bridge", exact_bind_address: `127.0.0.2:${port}` },
            { reason: "loopback", loopback_interface: {} },
          ],
        }),
      },
    );
    const { id, supervisor } = await bench.ready();
    const client = bench.gateway.connect("127.0.0.2");
    const only = "PERMISSION_DENIED: compute-driver callback listeners accept sandbox callback RPCs only";
    expect(await refusal(unary(client, client.Health, {}, CALL))).toBe(only);
    expect(await refusal(unary(client, client.ListSandboxes, {}, CALL))).toBe(only);
    const options = { ...CALL, metadata: supervisor.metadata() };
    expect(
      await refusal(unary(client, client.GetSandboxProviderEnvironment, { sandbox_id: id }, options)),
    ).toStartWith("OK");
    client.close();
  });

  test("UNIMPLEMENTED means none, and an empty name and version are fine", async () => {
    await using bench = await Bench.start(
      {},
      {
        GetCapabilities: () => ({ driver_name: "", driver_version: "", gateway_manages_lifecycle: true }),
        GetGatewayListenerRequirements: fails(code.UNIMPLEMENTED, "no"),
      },
    );
    const { client } = bench.gateway;
    expect((await unary(client, client.GetGatewayInfo, {}, CALL)).compute_drivers).toEqual([
      { name: "external-test", capabilities: { driver_name: "", driver_version: "" } },
    ]);
  });

  test("what cannot be met ends the gateway with its own message", async () => {
    const port = await freePort();
    const runtime = "execution error: failed to create compute runtime: ";
    const rows: [object, string][] = [
      [
        requirement({}),
        `${runtime}compute driver 'external-test' returned a gateway listener requirement without a selector`,
      ],
      [
        requirement({ exact_bind_address: "banana" }),
        `${runtime}compute driver 'external-test' returned invalid gateway listener address 'banana': invalid socket address syntax`,
      ],
      [
        requirement({ exact_bind_address: `0.0.0.0:${port}` }),
        `configuration error: compute driver requested wildcard gateway listener 0.0.0.0:${port}`,
      ],
      [
        requirement({ exact_bind_address: `224.0.0.1:${port}` }),
        `configuration error: compute driver requested multicast gateway listener 224.0.0.1:${port}`,
      ],
      [
        requirement({ exact_bind_address: "127.0.0.1:0" }),
        "configuration error: compute driver requested zero-port gateway listener 127.0.0.1:0",
      ],
      [
        requirement({ exact_bind_address: "127.0.0.2:1" }),
        `configuration error: compute driver requested gateway listener 127.0.0.2:1 with port 1, but the primary listener uses port ${port}`,
      ],
      [
        requirement({ exact_bind_address: `203.0.113.1:${port}` }),
        `transport error: failed to bind to 203.0.113.1:${port}: Cannot assign requested address (os error 99)`,
      ],
      [{ GetGatewayListenerRequirements: fails(code.INTERNAL, "confused") }, `${runtime}confused`],
      [{ GetCapabilities: fails(code.INTERNAL, "who knows") }, `${runtime}who knows`],
    ];
    const outcomes = await Promise.all(
      rows.map(async ([answers]) => {
        await using lab = new Lab();
        await lab.listen(answers);
        return await lab.fail({ port });
      }),
    );
    expect(outcomes.map(({ message }) => message)).toEqual(rows.map(([, message]) => message));
    expect(new Set(outcomes.map(({ exitCode }) => exitCode))).toEqual(new Set([1]));
  });

  test("the default route's address is used if it is private, and else refused", async () => {
    const port = await freePort();
    await using lab = new Lab();
    await lab.listen(requirement({ default_route_interface: {} }));
    const { args } = await lab.configure({ port });
    const route = (await Bun.$`ip -4 route get 192.0.2.1`.nothrow().quiet().text()).match(/src (\S+)/)?.[1];
    if (route && /^(10\.|192\.168\.|172\.(1[6-9]|2\d|3[01])\.)/.test(route)) {
      const gateway = await lab.start({ port });
      await eventually(
        "the listener's log line",
        () => gateway.log().includes(`address=${route}:${port}`) || undefined,
      );
    } else {
      const { exitCode, message } = await lab.run(args);
      expect(exitCode).toBe(1);
      expect(message).toMatch(
        /not a private IPv4 address \(reason: why\)|failed to resolve IPv4 default route/,
      );
    }
  });
});

describe.concurrent("settings", () => {
  test("a driver's name is normalised, and its table must have the normal name", async () => {
    await using lab = new Lab();
    await lab.listen();
    const { exitCode, message } = await lab.fail({ driver: "External_Podman" });
    expect(message).toBe("configuration error: remote compute driver 'external_podman' requires socket_path");
    expect(exitCode).toBe(1);
    const gateway = await lab.start({ driver: "External_Podman", table: "external_podman" });
    const { client } = gateway;
    expect((await unary(client, client.GetGatewayInfo, {}, CALL)).compute_drivers[0]!.name).toBe(
      "external_podman",
    );
  });

  test("a flag beats the environment, which beats the file", async () => {
    await using lab = new Lab();
    const driver = await lab.listen({}, lab.path("other.sock"));
    const [fromEnv, fromFlag] = [await freePort(), await freePort()];
    const { args } = await lab.configure({ args: ["--port", String(fromFlag)] });
    const env = {
      OPENSHELL_SERVER_PORT: String(fromEnv),
      OPENSHELL_DRIVERS: "podman",
      OPENSHELL_COMPUTE_DRIVER_SOCKET: driver.path,
    };
    const outcome = lab.start({ port: fromFlag, args: args.slice(4), env });
    const gateway = await outcome;
    // A reserved name is remote when its socket is given, as here.
    expect(
      (await unary(gateway.client, gateway.client.GetGatewayInfo, {}, CALL)).compute_drivers[0]!.name,
    ).toBe("podman");
    expect(gateway.log()).toContain(`bind=127.0.0.1:${fromFlag}`);
    expect(gateway.log()).toContain("in_tree=true");
  });

  test("a command line that makes no sense is refused with exit code 2", async () => {
    await using lab = new Lab();
    const rows: [string[], string, Record<string, string>?][] = [
      [["--nope"], "error: unexpected argument '--nope' found"],
      [["serve"], "error: unrecognized subcommand 'serve'"],
      [["--port", "abc"], "error: invalid value 'abc' for '--port <PORT>': invalid digit found in string"],
      [["--port", "99999"], "error: invalid value '99999' for '--port <PORT>': 99999 is not in 0..=65535"],
      [["--port=1", "--port=2"], "error: the argument '--port <PORT>' cannot be used multiple times"],
      [["--port"], "error: a value is required for '--port <PORT>' but none was supplied"],
      [
        ["--bind-address", "here"],
        "error: invalid value 'here' for '--bind-address <BIND_ADDRESS>': invalid IP address syntax",
      ],
      [
        ["--enable-mtls-auth", "maybe"],
        "error: invalid value 'maybe' for '--enable-mtls-auth <ENABLE_MTLS_AUTH>' [possible values: true, false]",
      ],
      [
        ["--drivers", "ext.podman"],
        "error: invalid value 'ext.podman' for '--drivers <DRIVERS>': invalid compute driver name 'ext.podman'. use ASCII letters, digits, '-' or '_'",
      ],
      [
        [],
        "error: invalid value '' for '--drivers <DRIVERS>': compute driver name cannot be empty",
        { OPENSHELL_DRIVERS: "" },
      ],
      [
        [],
        "error: invalid value '1' for '--disable-tls' [possible values: true, false]",
        { OPENSHELL_DISABLE_TLS: "1" },
      ],
      [
        [],
        "error: a value is required for '--compute-driver-socket <COMPUTE_DRIVER_SOCKET>' but none was supplied",
        { OPENSHELL_COMPUTE_DRIVER_SOCKET: "" },
      ],
    ];
    const outcomes = await Promise.all(rows.map(([args, , env]) => lab.run(args, env)));
    expect(outcomes.map(({ message }) => message.replace(/ (Usage: |For more information).*/, ""))).toEqual(
      rows.map(([, message]) => message),
    );
    expect(new Set(outcomes.map(({ exitCode }) => exitCode))).toEqual(new Set([2]));
  });

  test("settings that contradict each other are refused with exit code 1", async () => {
    await using lab = new Lab();
    const plain = ["--disable-tls", "--drivers", "a"];
    const rows: [string[], string, Record<string, string>?][] = [
      [
        ["--compute-driver-socket", "/x"],
        "--compute-driver-socket requires --drivers <name> or OPENSHELL_DRIVERS=<name> to select a compute driver name",
      ],
      [
        ["--compute-driver-socket", "/x", "--drivers", "a,b"],
        "--compute-driver-socket requires exactly one compute driver name, got: a,b",
      ],
      [
        ["--drivers", "a,b"],
        "configuration error: multiple compute drivers are not supported yet; configured drivers: a,b",
      ],
      [plain, "configuration error: remote compute driver 'a' requires socket_path"],
      [["--drivers", "a"], "--tls-cert is required when TLS is enabled (use --disable-tls to skip)"],
      [
        ["--drivers", "a", "--tls-cert", "x"],
        "--tls-key is required when TLS is enabled (use --disable-tls to skip)",
      ],
      [
        [...plain, "--tls-client-ca", "x"],
        "--disable-tls and --tls-client-ca are mutually exclusive. Client certificate verification requires that TLS be enabled.",
      ],
      [
        [...plain, "--enable-mtls-auth", "true"],
        "mTLS user authentication requires TLS. Remove --disable-tls or disable --enable-mtls-auth.",
      ],
      [
        [...plain, "--health-port", "17670"],
        "--port and --health-port must be different (both set to 17670)",
      ],
      [
        [...plain, "--grpc-rate-limit-requests", "5"],
        "gRPC rate limiting requires both --grpc-rate-limit-requests and --grpc-rate-limit-window-seconds (TOML keys grpc_rate_limit_requests and grpc_rate_limit_window_seconds) to be positive; set either value to 0 to disable",
      ],
      [[...plain, "--db-url", "mysql:x"], "configuration error: unsupported database URL scheme: mysql:x"],
      [
        [...plain, "--db-url", "sqlite:/nowhere/x.db"],
        "execution error: database error: error returned from database: (code: 14) unable to open database file",
      ],
      [
        [...plain, "--db-url", "sqlite:/tmp/x.db?foo=1"],
        "execution error: database error: error with configuration: unknown query parameter `foo` while parsing connection URL",
      ],
    ];
    const outcomes = await Promise.all(rows.map(([args, , env]) => lab.run(args, env)));
    expect(outcomes.map(({ message }) => message)).toEqual(rows.map(([, message]) => message));
    expect(new Set(outcomes.map(({ exitCode }) => exitCode))).toEqual(new Set([1]));
  });

  test("the inherited variable of a driver is refused where the file names the driver", async () => {
    await using lab = new Lab();
    const { exitCode, message } = await lab.fail({ env: { OPENSHELL_COMPUTE_DRIVER_SOCKET: "/somewhere" } });
    expect(exitCode).toBe(1);
    expect(message).toStartWith("--compute-driver-socket requires --drivers <name>");
  });

  test("a file that is wrong is shown with the line", async () => {
    await using lab = new Lab();
    const rows: [string, string][] = [
      [
        "[openshell.gateway]\nbogus = 1\n",
        "TOML parse error at line 2, column 1 | 2 | bogus = 1 | ^^^^^ unknown field `bogus`, expected one of `bind_address`",
      ],
      [
        "[nope]\n",
        "TOML parse error at line 1, column 2 | 1 | [nope] | ^^^^ unknown field `nope`, expected `openshell`",
      ],
      [
        "[openshell.gateway.auth]\nx = true\n",
        "TOML parse error at line 2, column 1 | 2 | x = true | ^ unknown field `x`, expected `allow_unauthenticated_users`",
      ],
      [
        '[openshell.gateway]\nbind_address = "foo"\n',
        'TOML parse error at line 2, column 16 | 2 | bind_address = "foo" | ^^^^^ invalid socket address syntax',
      ],
      [
        '[openshell.gateway]\ncompute_drivers = "foo"\n',
        'TOML parse error at line 2, column 19 | 2 | compute_drivers = "foo" | ^^^^^ invalid type: string "foo", expected a sequence',
      ],
      [
        "[openshell.gateway]\ndisable_tls = 3\n",
        "TOML parse error at line 2, column 15 | 2 | disable_tls = 3 | ^ invalid type: integer `3`, expected a boolean",
      ],
      [
        "[openshell.gateway.tls]\n",
        "TOML parse error at line 1, column 1 | 1 | [openshell.gateway.tls] | ^^^^^^^^^^^^^^^^^^^^^^^ missing field `cert_path`",
      ],
      [
        "[openshell.gateway.gateway_jwt]\nsigning_key_path = 'x'\n",
        "TOML parse error at line 1, column 1 | 1 | [openshell.gateway.gateway_jwt]",
      ],
      ['[openshell.gateway]\nport = "x\n', "TOML parse error at line 2, column 10"],
    ];
    const outcomes = [];
    for (const [index, [text]] of rows.entries()) {
      writeFileSync(lab.path(`${index}.toml`), text);
      outcomes.push(await lab.run(["--config", lab.path(`${index}.toml`)]));
    }
    for (const [index, [, message]] of rows.entries()) {
      expect(outcomes[index]!.message).toStartWith(
        `failed to parse gateway config file '${lab.path(`${index}.toml`)}': ${message}`,
      );
      expect(outcomes[index]!.exitCode).toBe(1);
    }
  });

  test("a file that is missing, of a later version, or holds what it may not, is refused", async () => {
    await using lab = new Lab();
    const config = async (text: string) => {
      writeFileSync(lab.path("x.toml"), text);
      return (await lab.run(["--config", lab.path("x.toml")])).message;
    };
    expect((await lab.run(["--config", "/nope.toml"])).message).toBe(
      "failed to read gateway config file '/nope.toml': No such file or directory (os error 2)",
    );
    expect(await config("[openshell]\nversion = 2\n")).toBe(
      "unsupported gateway config version 2; this build only supports version 1",
    );
    expect(await config('[openshell.gateway]\ndatabase_url = "x"\n')).toBe(
      "`database_url` is not allowed in the gateway config file — set the OPENSHELL_DB_URL env var or pass --db-url on the command line",
    );
    expect(await config('[openshell.gateway]\ncompute_drivers = ["ext.podman"]\n')).toBe(
      "configuration error: invalid compute driver name 'ext.podman'. use ASCII letters, digits, '-' or '_'",
    );
    expect(await config("[openshell.gateway]\ncredential_drivers = []\n")).toStartWith(
      "invalid gateway config field `openshell.gateway.credential_drivers`: omit the field",
    );
  });

  test("a missing key file and a half-written folder are named", async () => {
    await using lab = new Lab();
    await lab.listen();
    await Bun.file(lab.path("kid")).delete();
    expect((await lab.fail()).message).toBe(
      `configuration error: failed to read sandbox JWT kid from ${lab.path("kid")}: No such file or directory (os error 2)`,
    );
    const env = { OPENSHELL_LOCAL_TLS_DIR: lab.path("half") };
    await Bun.write(lab.path("half/jwt/kid"), "x");
    expect((await lab.fail({ env })).message).toBe(
      `partial local sandbox JWT state in ${lab.path("half")}: expected jwt/signing.pem, jwt/public.pem, and jwt/kid`,
    );
  });

  test("without user authentication users are refused, without keys supervisors are", async () => {
    await using lab = new Lab();
    await lab.listen();
    const strict = await lab.start({ gateway: { auth: { allow_unauthenticated_users: false } } });
    expect(await refusal(create(strict))).toBe("UNAUTHENTICATED: missing authorization header");
    await strict.kill();
    const { args } = await lab.configure();
    const config = args[1]!;
    writeFileSync(
      config,
      readFileSync(config, "utf8").replace(/\[openshell\.gateway\.gateway_jwt\][^[]*/, ""),
    );
    const port = Number(/gateway-(\d+)/.exec(config)![1]);
    const keyless = await lab.start({ port, gateway: { gateway_jwt: undefined } });
    const { id } = (await create(keyless)).metadata!;
    const supervisor = new ScriptedSupervisor(keyless.client, id, "none");
    expect(await eventually("a refusal", () => supervisor.ended)).toMatchObject({
      code: code.PERMISSION_DENIED,
      details: "this method requires a sandbox principal",
    });
  });

  test.skipIf(isReal)("what only the real program has is refused by name", async () => {
    // The real gateway would run its own Podman driver here.
    await using lab = new Lab();
    for (const driver of ["podman", "docker", "kubernetes", "vm"]) {
      const { exitCode, message } = await lab.fail({ driver });
      expect(exitCode).toBe(1);
      expect(message).toStartWith(`this fake gateway has no in-tree compute driver '${driver}'`);
    }
    expect((await lab.fail({ args: ["--oidc-issuer", "https://x"] })).message).toStartWith(
      "this fake gateway has no OIDC",
    );
    expect(
      (await lab.run(["--drivers", "a", "--disable-tls", "--db-url", "postgres://x"])).message,
    ).toStartWith("this fake gateway has no Postgres");
    expect((await lab.fail({ env: { OPENSHELL_FAKE_DIAL_SECONDS: "soon" } })).exitCode).toBe(2);
  });
});

describe.concurrent("TLS", () => {
  test("generate-certs makes what mTLS needs: a client without a certificate is refused, one with it served", async () => {
    await using lab = new Lab();
    const pki = lab.path("pki");
    const certs = (...args: string[]) => lab.run(["generate-certs", "--output-dir", pki, ...args]);
    expect((await certs("--server-san", "extra.example")).exitCode).toBe(0);
    expect(statSync(`${pki}/ca.key`).mode & 0o777).toBe(0o600);
    const server = readFileSync(`${pki}/server/tls.crt`, "utf8");
    expect((await certs("--server-san", "extra.example")).exitCode).toBe(0);
    expect(readFileSync(`${pki}/server/tls.crt`, "utf8")).toBe(server);
    expect(existsSync(lab.path("openshell/gateways/openshell/mtls/tls.key"))).toBe(true);

    const file = (name: string) => readFileSync(`${pki}/${name}`);
    const credentials = grpc.credentials.createSsl(
      file("ca.crt"),
      file("client/tls.key"),
      file("client/tls.crt"),
    );
    const driver = await lab.listen();
    const gateway = await lab.start({
      credentials,
      gateway: {
        disable_tls: false,
        auth: { allow_unauthenticated_users: false },
        tls: {
          cert_path: `${pki}/server/tls.crt`,
          key_path: `${pki}/server/tls.key`,
          client_ca_path: `${pki}/ca.crt`,
        },
        mtls_auth: { enabled: true },
        gateway_jwt: {
          signing_key_path: `${pki}/jwt/signing.pem`,
          public_key_path: `${pki}/jwt/public.pem`,
          kid_path: `${pki}/jwt/kid`,
        },
      },
    });
    const { id, name } = (await create(gateway)).metadata!;
    const supervisor = new ScriptedSupervisor(
      gateway.client,
      id,
      driver.created.get(id)!.spec!.sandbox_token,
    );
    await supervisor.accepted();
    await reaches(gateway, name, "READY");
    expect(await exec(gateway, { sandbox_id: id, command: ["echo", "over mTLS"] })).toMatchObject({
      stdout: "over mTLS\n",
      exitCode: 0,
    });

    const anonymous = gateway.connect("127.0.0.1", grpc.credentials.createSsl(file("ca.crt")));
    expect(await refusal(unary(anonymous, anonymous.Health, {}, { deadlineMs: 3_000 }))).toMatch(
      /^(UNAVAILABLE|DEADLINE_EXCEEDED)/,
    );
    anonymous.close();

    await Bun.file(`${pki}/ca.key`).delete();
    const partial = await certs();
    expect(partial.exitCode).toBe(1);
    expect(partial.message).toBe(
      `partial PKI state in ${pki}: some files exist but not all. Recover with: rm -rf ${pki} (the gateway will regenerate on next start)`,
    );
  });
});

test("the program says who it is", async () => {
  await using lab = new Lab();
  expect((await lab.run(["--version"])).stdout).toMatch(/^openshell-gateway \d+\.\d+\.\d+/);
  expect((await lab.run(["--help"])).stdout).toContain("--compute-driver-socket");
});
