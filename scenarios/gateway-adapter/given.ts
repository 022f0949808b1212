// SPDX-License-Identifier: Apache-2.0

/**
 * What scenarios of this suite are given: a gateway between a scripted driver and scripted supervisors.
 *
 *   const { scenario } = gateways();
 *   scenario("GA-331 …", async ({ driver, create }) => {
 *     driver.on("CreateSandbox", fail(9, "no gpu"));
 *     expect(await outcomeOf(create())).toBe("FAILED_PRECONDITION: no gpu");
 *   });
 */
import { afterAll, test } from "bun:test";
import { Database } from "bun:sqlite";
import * as grpc from "@grpc/grpc-js";
import { outcomeOf, streaming, unary, type CallOptions } from "../../proto/contract.ts";
import { GATEWAYS_AT_A_TIME, register } from "../../harness/scenario.ts";
import { HarnessError, phaseOf, within } from "../../harness.ts";
import { indent } from "../../harness/base/text.ts";
import { turns, until } from "../../harness/base/waiting.ts";
import type { DriverSandboxStatus } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandboxStatus.ts";
import type { DriverSandbox } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { CreateSandboxRequest } from "../../proto/v0.0/types/openshell/v1/CreateSandboxRequest.ts";
import type { OpenShellClient } from "../../proto/v0.0/types/openshell/v1/OpenShell.ts";
import type { Sandbox__Output } from "../../proto/v0.0/types/openshell/v1/Sandbox.ts";
import { type About, aboutCaller, recorded } from "../../harness/report/scenario.ts";
import { type GatewayOptions, type GatewayProcess, Lab } from "./gateway-process.ts";
import { type Script, ScriptedDriver } from "./scripted-driver.ts";
import { ScriptedSupervisor } from "./scripted-supervisor.ts";

export { CAPABILITIES, fail, OWN_LIFECYCLE, ready, readyIs } from "./scripted-driver.ts";

/** What one call of a user may take, in milliseconds; a gateway itself gives a driver all the time in the world. */
const CALL_DEADLINE_MS = 20_000;
/** What a scenario may take: a real gateway waits for its driver for 30 s. */
const SCENARIO_DEADLINE_MS = 60_000;
/** Above that and what comes before and after, the wait for a turn above all. Bun's own default is 5 s. */
const TEST_DEADLINE_MS = 180_000;

// Scenarios

/** Gateways that no scenario has in hand: of those that are as they were found, and of those that may have been restarted. */
const idle: Record<"shared" | "own", Bench[]> = { shared: [], own: [] };

/**
 * A file's two kinds of scenario with a gateway. Both get one that others had before them and nobody has meanwhile:
 * after each the driver forgets its script, and the gateway the sandboxes. One with which a scenario failed is not used
 * again. A name that a scenario gives to a sandbox is given by no other: of one that hangs there is no forgetting.
 *
 *   - `scenario` leaves its gateway as it found it;
 *   - `ownGateway` may end it and start it again, or end its driver: what is not as usual afterwards is not used again,
 *     nor is a gateway that was started with a script of its own, whose calls are all there to be seen.
 */
export function gateways() {
  afterAll(async () => {
    const unused = [...idle.shared.splice(0), ...idle.own.splice(0)];
    await Promise.all(unused.map((bench) => bench.close()));
  }, TEST_DEADLINE_MS);
  const kind =
    (pool: Bench[]) =>
    (title: string, body: (bench: Bench) => Promise<void>, script?: Script): void => {
      const prove = async () => {
        const used = script ? undefined : pool.pop();
        const bench = used ?? (await Bench.start({}, script));
        try {
          if (used && pool === idle.own) await used.empty();
          if (!script) bench.driver.calls = [];
          await judged(body, bench);
        } catch (error) {
          await bench.close();
          throw error;
        }
        if (script || !bench.isUsual) return bench.close();
        bench.tidy();
        pool.push(bench);
      };
      const about = aboutCaller(title, import.meta.path);
      inItsTurn(about, prove);
    };
  return { scenario: kind(idle.shared), ownGateway: kind(idle.own) };
}

/** A scenario about gateways that have yet to be started, in a folder of its own; runs beside others. */
export function ownLab(title: string, body: (lab: Lab) => Promise<void>): void {
  const prove = async () => {
    await using lab = await Lab.open();
    await within(SCENARIO_DEADLINE_MS, "The scenario", body(lab));
  };
  const about = aboutCaller(title, import.meta.path);
  inItsTurn(about, prove);
}

/** Gateways that start all at once start slowly; most of what they then do is waiting. */
const inTurn = turns(() => GATEWAYS_AT_A_TIME);

const inItsTurn = (about: About, prove: () => Promise<void>): void =>
  register(about.title, () =>
    test.concurrent(about.title, () => inTurn(() => recorded(about, prove)), TEST_DEADLINE_MS),
  );

/** A failure shows what the driver was asked, and the gateway's last words. */
async function judged(body: (bench: Bench) => Promise<void>, bench: Bench): Promise<void> {
  try {
    await within(SCENARIO_DEADLINE_MS, "The scenario", body(bench));
  } catch (error) {
    const failure = error instanceof Error ? error : new Error(String(error));
    failure.message += `\n\n${bench.evidence()}`;
    throw failure;
  }
}

// Waiting and answers

/** The phase without its prefix, and the Ready condition: "READY True/DependenciesReady". */
export function stateOf(sandbox: Sandbox__Output): string {
  const condition = sandbox.status?.conditions.find(({ type }) => type === "Ready");
  return `${phaseOf(sandbox)} ${condition ? `${condition.status}/${condition.reason}` : "-"}`;
}

// A gateway with its driver

type UserMethod<Request, Response> = (
  request: Request,
  callback: grpc.requestCallback<Response>,
) => grpc.ClientUnaryCall;

/** A gateway with its scripted driver, and a user of it. Its functions need no `this`: scenarios take what they use. */
export class Bench {
  readonly sandboxes: TestSandbox[] = [];
  #hasOwnOptions = false;

  constructor(
    readonly lab: Lab,
    public driver: ScriptedDriver,
    public gateway: GatewayProcess,
  ) {}

  static async start(options: GatewayOptions = {}, script: Script = {}): Promise<Bench> {
    const lab = await Lab.open();
    try {
      const driver = await lab.listen(script);
      const bench = new Bench(lab, driver, await lab.start(options));
      await bench.watched();
      return bench;
    } catch (error) {
      await lab.close();
      throw error;
    }
  }

  /** Calls a method of the public API: `call((client) => client.GetSandbox, { name })`. */
  call = <Request, Response>(
    method: (client: OpenShellClient) => UserMethod<Request, Response>,
    request: Request,
    options: Partial<CallOptions> = {},
  ): Promise<Response> => {
    const { client } = this.gateway;
    return unary(client, method(client), request, { deadlineMs: CALL_DEADLINE_MS, ...options });
  };

  /** Asks for a sandbox; resolves once the gateway has accepted it, while it is Provisioning. */
  create = async (
    request: CreateSandboxRequest = {},
    options: Partial<CallOptions> = {},
  ): Promise<TestSandbox> => {
    const { sandbox } = await this.call((client) => client.CreateSandbox, { spec: {}, ...request }, options);
    const created = new TestSandbox(this, sandbox!);
    this.sandboxes.push(created);
    return created;
  };

  /** A sandbox with a supervisor's session, which is Ready. */
  readySandbox = async (request: CreateSandboxRequest = {}): Promise<ReadySandbox> => {
    const sandbox = await this.create(request);
    await sandbox.supervise();
    await sandbox.reaches("READY");
    return sandbox as ReadySandbox;
  };

  /** The public record of that name. */
  get = async (name: string): Promise<Sandbox__Output> =>
    (await this.call((client) => client.GetSandbox, { name })).sandbox!;

  /** Waits until the driver has a watcher. */
  watched = (): Promise<true> =>
    until("the gateway to watch its driver", () => this.driver.watching || undefined);

  /** Waits until the gateway has applied all events sent so far: it takes them in order, and one of `sandbox` is last. */
  applied = async ({ id }: TestSandbox): Promise<void> => {
    const deadline = Date.now() + CALL_DEADLINE_MS;
    const events = streaming(this.gateway.client.WatchSandbox({ id, follow_events: true }, { deadline }));
    await events.next();
    this.driver.platformEvent(id, { reason: "Marker" });
    for await (const { event } of events) if (event?.reason === "Marker") break;
  };

  /** Ends the gateway with SIGTERM, or the signal given, and starts it again on the same database. */
  restart = async (signal: NodeJS.Signals = "SIGTERM", options: GatewayOptions = {}): Promise<void> => {
    await this.gateway.stop(signal);
    this.driver.calls = [];
    this.gateway = await this.lab.start(options);
    this.#hasOwnOptions = Object.keys(options).length > 0;
  };

  /** Has the gateway forget the sandboxes of who had it before: at its next start it would ask for them. */
  empty = (): Promise<true> => {
    let left: string[] = [];
    const look = async () => {
      const { sandboxes } = await this.call((client) => client.ListSandboxes, { all_workspaces: true });
      left = sandboxes.map(({ metadata }) => metadata!.name);
      for (const { metadata } of sandboxes) this.driver.deleted(metadata!.id);
      return left.length === 0;
    };
    return until("the gateway to forget the sandboxes before", look, { seen: () => left });
  };

  /**
   * Makes a sandbox's record older, for the gateway's grace period of five minutes: its creation, its last change, or
   * both. The gateway must not run: it is done in its database, since nobody can wait that long.
   */
  age = (sandbox: TestSandbox, seconds: number, ...columns: ("created_at_ms" | "updated_at_ms")[]): void => {
    const older = (columns.length > 0 ? columns : ["created_at_ms", "updated_at_ms"]).map(
      (column) => `${column} = ${column} - ?1`,
    );
    const database = new Database(this.lab.databasePath);
    const { changes } = database
      .query(`UPDATE objects SET ${older.join(", ")} WHERE id = ?2`)
      .run(seconds * 1_000, sandbox.id);
    database.close();
    if (changes !== 1) throw new HarnessError(`The gateway's database has no row of sandbox ${sandbox.id}`);
  };

  /** Whether the gateway runs as it is started usually, and watches its driver. */
  get isUsual(): boolean {
    return this.gateway.ended === undefined && !this.#hasOwnOptions && this.driver.watching;
  }

  /** Leaves a gateway to the next scenario as it was. */
  tidy(): void {
    this.driver.usual();
    for (const { id, supervisor } of this.sandboxes.splice(0)) {
      supervisor?.close();
      this.driver.deleted(id);
    }
  }

  /** What the driver was asked, and what the gateway said last. */
  evidence(): string {
    const calls = this.driver.calls.slice(-20).map(({ method, request }) => {
      const about = request.sandbox_name ?? request.sandbox?.name ?? "";
      return `${method} ${about}`.trimEnd();
    });
    const spans = /request\{[^}]*\}: /g;
    const log = this.gateway.log.replace(spans, "").trimEnd().split("\n").slice(-12).join("\n");
    return `Calls to the driver:\n${indent(calls.join("\n"), "  ")}\nGateway's log:\n${indent(log, "  ")}`;
  }

  close = (): Promise<void> => this.lab.close();
  [Symbol.asyncDispose] = () => this.close();
}

// Sandboxes

/** One that has, or had, a supervisor. */
type ReadySandbox = TestSandbox & { supervisor: ScriptedSupervisor };

/** A sandbox as its user sees it, and its supervisor. */
export class TestSandbox {
  readonly id: string;
  readonly name: string;
  supervisor: ScriptedSupervisor | undefined;

  constructor(
    readonly bench: Bench,
    /** As CreateSandbox returned it. */
    readonly created: Sandbox__Output,
  ) {
    this.id = created.metadata!.id;
    this.name = created.metadata!.name;
  }

  get = (): Promise<Sandbox__Output> => this.bench.get(this.name);
  phase = async (): Promise<string> => phaseOf(await this.get());
  state = async (): Promise<string> => stateOf(await this.get());

  /** Each answers with the record that the gateway returns. */
  stop = async (options: Partial<CallOptions> = {}): Promise<Sandbox__Output> =>
    (await this.bench.call((client) => client.StopSandbox, { name: this.name }, options)).sandbox!;
  start = async (options: Partial<CallOptions> = {}): Promise<Sandbox__Output> =>
    (await this.bench.call((client) => client.StartSandbox, { name: this.name }, options)).sandbox!;
  /** Resolves with the gateway's `deleted`. */
  delete = async (options: Partial<CallOptions> = {}): Promise<boolean> =>
    (await this.bench.call((client) => client.DeleteSandbox, { name: this.name }, options)).deleted;

  /** Opens a supervisor's session, with the token that the driver was given. */
  supervise = async (
    instanceId = "instance-1",
    client = this.bench.gateway.client,
  ): Promise<ScriptedSupervisor> => {
    const { driver } = this.bench;
    const made = driver.created.get(this.id);
    if (!made) throw new HarnessError(`The driver never made ${this.name}`);
    this.supervisor = new ScriptedSupervisor(client, this.id, made.spec!.sandbox_token, instanceId);
    await this.supervisor.accepted();
    return this.supervisor;
  };

  /** Its supervisor reports how the main process of an instance ended; resolves once the gateway has taken it in. */
  exited = async (instance_id: string, exit_code: number): Promise<void> => {
    const request = { sandbox_id: this.id, instance_id, exit_code };
    const metadata = this.supervisor!.metadata();
    await this.bench.call((client) => client.ReportMainProcessExit, request, { metadata });
  };

  /** Has the driver report a status, and resolves with the record once the gateway has taken it in. */
  report = async (
    status: DriverSandboxStatus | null,
    differing: DriverSandbox = {},
  ): Promise<Sandbox__Output> => {
    const { driver, applied } = this.bench;
    driver.snapshot(this.id, status, differing);
    await applied(this);
    return this.get();
  };

  /** Waits until the state begins with `wanted`: "READY", or "ERROR False/Pulling". */
  reaches = async (wanted: string): Promise<Sandbox__Output> => {
    let last = "";
    const look = async () => {
      const sandbox = await this.get();
      last = stateOf(sandbox);
      return last.startsWith(wanted) && sandbox;
    };
    return until(`${this.name} to be ${wanted}`, look, { seen: () => last });
  };

  /** Waits until nobody knows it. */
  gone = async (): Promise<void> => {
    let last = "";
    const look = async () => (last = await outcomeOf(this.get())) === "NOT_FOUND: sandbox not found";
    await until(`${this.name} to be gone`, look, { seen: () => last });
  };
}
