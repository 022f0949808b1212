// SPDX-License-Identifier: Apache-2.0

/**
 * What the body of a check is given: a driver to ask, sandboxes of its own, and a backend to look into. Whatever it
 * makes is removed when it ends, last made first.
 */
import { createHash, randomBytes } from "node:crypto";
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Connection } from "../runtime/connection.ts";
import { eventually } from "../base/waiting.ts";
import { isAlive, mustListen } from "../base/system.ts";
import { EngineProxy } from "../runtime/faults/engine-proxy.ts";
import type { DriverContext } from "../base/driver-context.ts";
import type { StackInfo } from "../runtime/stack.ts";
import type { ComputeDriverClient } from "../../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";
import type { DriverSandbox } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { DriverSandboxSpec } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandboxSpec.ts";
import { know } from "../base/secrets.ts";
import type { Backend, Given, Workload } from "./backend.ts";
import { holds, NotApplicable, patient, Refused, same, Violation } from "./finding.ts";
import { type Asked, Driver, describeSnapshot, isStopped, isUp, type Ref, type Snapshot } from "./driver.ts";

/** The driver that is checked, and what the harness can do to it. */
export interface Subject {
  /** Where it serves. */
  socket: string;
  /** The same driver, with nothing broken in between: for what the harness does on its own account, for all checks. */
  own: Driver;
  backend: Backend | undefined;
  /** The image that sandboxes ask for; empty for the driver's default. */
  image: string;
  /** How a sandbox can be stopped at most, in milliseconds: the driver's stop timeout, and time for the rest. */
  stopMs: number;
  /** Connections that checks left as good as new, for others; unset where each is to make its own. */
  spare?: ComputeDriverClient[];
  /** Puts something between the checks and one more driver that serves on this socket. Resolves with what to dial. */
  inFront?: (socket: string) => Promise<string>;
  /** The keeper's stack that the driver is part of; unset when somebody else started it. */
  owned?: {
    keeper: Connection;
    stack: StackInfo;
    hasPodmanSocket: boolean;
    /** Whether its command tells one installation from another. */
    isolates: boolean;
  };
}

/** How long a sandbox may take to run, in milliseconds; the image is there already. */
export const UP_MS = 15_000;

/** One check's run. */
export class Trial {
  /** The connection that most checks ask over. */
  readonly driver: Driver;
  readonly #undo: (() => Promise<void> | void)[] = [];
  readonly #drivers: Driver[] = [];
  /** Whether a sandbox that was to come up did; unset while none was to. */
  cameUp: boolean | undefined;
  #ended = false;

  constructor(readonly subject: Subject) {
    this.driver = this.connect(subject.socket, undefined, subject.spare?.pop());
  }

  /** Says that the rule cannot be asked here, and why. */
  skip(reason: string): never {
    throw new NotApplicable(reason);
  }

  /**
   * Has something done when the check ends, before everything that was deferred earlier.
   * @throws Error when it has ended: a body that was cut off must not make what nobody removes.
   */
  defer(undo: () => Promise<void> | void): void {
    if (this.#ended) throw new Error("The check has ended");
    this.#undo.push(undo);
  }

  /** Every call that the check made, oldest first. */
  get asked(): Asked[] {
    return this.#drivers.flatMap(({ asked }) => asked).toSorted((a, b) => a.at - b.at);
  }

  /** One more connection to the driver, or to another one. */
  connect(socket = this.subject.socket, authority?: string, client?: ComputeDriverClient): Driver {
    const driver = new Driver(socket, authority, client);
    this.#drivers.push(driver);
    return driver;
  }

  /** Undoes everything. Resolves with what went wrong with that, a line each; the rest is undone all the same. */
  async end(): Promise<string[]> {
    this.#ended = true;
    const spare = this.driver.isAsNew ? this.subject.spare : undefined;
    await Promise.all(this.#drivers.map((driver) => driver.cancel()));
    const problems: string[] = [];
    for (const undo of this.#undo.toReversed()) {
      try {
        await undo();
      } catch (error) {
        problems.push((error as Error).message);
      }
    }
    for (const driver of this.#drivers) {
      if (spare && driver === this.driver) spare.push(driver.client);
      else driver.close();
    }
    return problems;
  }

  // Sandboxes

  /** A sandbox as a gateway asks for it, with an id and a name that nobody else has. Nothing is created. */
  sandbox(spec: DriverSandboxSpec = {}, rest: Partial<DriverSandbox> = {}): DriverSandbox & Ref {
    const { template, ...others } = spec;
    return {
      id: crypto.randomUUID(),
      name: `dc-${randomBytes(5).toString("hex")}`,
      namespace: "",
      workspace: "default",
      status: {},
      spec: {
        command: ["sleep", "2147483"],
        sandbox_token: this.token(),
        template: { image: this.subject.image, ...template },
        ...others,
      },
      ...rest,
    };
  }

  /** A token of a JWT's form, which opens nothing. */
  token(): string {
    const part = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const token = `${part({ alg: "EdDSA", typ: "JWT" })}.${part({ sub: crypto.randomUUID() })}.${randomBytes(48).toString("base64url")}`;
    know(token);
    return token;
  }

  /** Has the driver create it, and removes it at the end: what is left in the backend then is a finding of its own. */
  async create(sandbox: DriverSandbox & Ref = this.sandbox(), over = this.driver): Promise<Box> {
    await this.forget(sandbox, over);
    await over.create(sandbox, UP_MS);
    return new Box(this, sandbox, over);
  }

  /** The same, and waits until its compute is up. */
  async running(sandbox: DriverSandbox & Ref = this.sandbox(), over = this.driver): Promise<Box> {
    const box = await this.create(sandbox, over);
    await box.up();
    return box;
  }

  /** Removes a sandbox at the end, whether or not it was ever made: over the driver that made it, if that still can. */
  async forget(who: Ref, maker?: Driver): Promise<void> {
    const { owned, own, backend, stopMs } = this.subject;
    await owned?.keeper.call("remember", owned.stack.id, who.id);
    this.defer(async () => {
      // One that the check itself had deleted need not be deleted again, unless that left something.
      const isDeleted = this.#drivers.some(({ deleted }) => deleted.has(who.id));
      const left = isDeleted ? await backend?.list?.(who.id).catch(() => undefined) : undefined;
      if (left?.length === 0) return;
      // Whatever comes of it, the backend is looked into: a driver that is gone has left everything there.
      if (maker && maker !== this.driver) await maker.delete(who, stopMs).catch(() => {});
      const refused = await own.delete(who, stopMs).then(
        () => undefined,
        (error: Error) => error,
      );
      if (backend?.list) await this.#leavesNothing(who);
      if (refused) throw refused;
    });
  }

  /** Removes what is left in the backend. @throws Error that tells what it was */
  async #leavesNothing(who: Ref): Promise<void> {
    const { owned, backend } = this.subject;
    const none = async () => {
      const left = await backend!.list!(who.id);
      if (left.length > 0) throw new Error(left.join(", "));
    };
    // A driver may answer before its backend has let go of the last volume.
    const waiting = { what: `nothing left of ${who.name}`, deadlineMs: 3_000 };
    await eventually(none, waiting).catch(async (error) => {
      if (owned) await owned.keeper.call("removeLeftovers", owned.stack.id, [who.id]);
      // The harness need not know the engine of a driver that it started.
      await backend!.remove?.(who.id);
      throw error;
    });
  }

  // Backend

  /** A power over the backend. @throws NotApplicable, with what would give it, when there is none. */
  backend<Power extends "list" | "kill" | "remove" | "inspect" | "ask">(
    power: Power,
  ): NonNullable<Backend[Power]> {
    const found = this.subject.backend?.[power];
    if (found) return found as NonNullable<Backend[Power]>;
    const flag =
      power === "inspect" || power === "ask"
        ? "--backend podman"
        : `--backend podman or --backend-${power} 'CMD {id}'`;
    return this.skip(`nobody can ${power} in the driver's backend: ${flag} would`);
  }

  // Other drivers

  /**
   * Starts one more driver of the same kind, told `differing` things. It is ended with the check. What an earlier one
   * was `told` starts it again: on the same socket, with the same state.
   */
  async startDriver(differing: Partial<DriverContext> = {}): Promise<DriverProcess> {
    const { owned } = this.subject;
    if (!owned)
      return this.skip("the driver was started by somebody else: --driver 'CMD' lets the harness start one");
    if ("network" in differing && !owned.isolates)
      return this.skip(
        "the driver's command has neither {network} nor {state}: nothing tells two of them apart",
      );
    if ("podman_socket" in differing && !owned.hasPodmanSocket)
      return this.skip("the driver's command has no {podman_socket}, so its backend cannot be moved");
    const { keeper, stack } = owned;
    const folder = this.folder();
    const told = { socket: join(folder, "driver.sock"), state: join(folder, "state"), ...differing };
    const number = await keeper.call("startOtherDriver", stack.id, told);
    const front = (await this.subject.inFront?.(told.socket)) ?? told.socket;
    const { pid } = await keeper.call("driverState", stack.id, number);
    const driver = new DriverProcess(keeper, stack.id, number, pid, told, front);
    this.defer(() => driver.kill());
    return driver;
  }

  /** A private folder of this check's own, on disk until it ends. */
  folder(): string {
    const { owned } = this.subject;
    if (!owned)
      return this.skip("the driver was started by somebody else: --driver 'CMD' lets the harness start one");
    const folder = join(owned.stack.folder, randomBytes(3).toString("hex"));
    mkdirSync(folder, { mode: 0o700 });
    this.defer(() => rmSync(folder, { recursive: true, force: true }));
    return folder;
  }

  /** A proxy before the engine: for a driver that is to lose its backend, or to be kept waiting by it. */
  async engineProxy(): Promise<EngineProxy> {
    const engineSocket = this.subject.owned?.stack.engineSocket;
    if (!engineSocket) return this.skip("the harness does not know the driver's engine");
    const proxy = await EngineProxy.open(join(this.folder(), "engine.sock"), engineSocket);
    this.defer(() => proxy.close());
    return proxy;
  }
}

/** No driver makes again what it does not have, nor comes to like a request that it does not. */
const FINAL = new Set(["NOT_FOUND", "INVALID_ARGUMENT", "UNIMPLEMENTED", "PERMISSION_DENIED"]);

/** A sandbox that a check had created. */
export class Box implements Ref {
  readonly id: string;
  readonly name: string;
  readonly workspace: string;

  constructor(
    readonly trial: Trial,
    readonly asked: DriverSandbox & Ref,
    readonly driver: Driver,
  ) {
    this.id = asked.id;
    this.name = asked.name;
    this.workspace = asked.workspace ?? "";
  }

  get = (): Promise<Snapshot> => this.driver.get(this);
  stop = () => this.driver.stop(this, this.trial.subject.stopMs);
  start = () => this.driver.start(this, UP_MS);
  delete = () => this.driver.delete(this, this.trial.subject.stopMs);

  /** Its snapshot in ListSandboxes; undefined if it is not listed. */
  async listed(): Promise<Snapshot | undefined> {
    return (await this.driver.list()).find(({ id }) => id === this.id);
  }

  /**
   * Waits until its snapshot is as `seen` wants it.
   * @throws Violation with the last one; Refused, at once, when it is not to be had by asking again.
   */
  async until(what: string, seen: (snapshot: Snapshot) => boolean, longestMs = UP_MS): Promise<Snapshot> {
    const deadlineMs = patient(longestMs);
    let last = "nothing";
    let final: Refused | undefined;
    const look = async () => {
      const snapshot = await this.get().catch((error: unknown) => {
        if (error instanceof Refused && FINAL.has(error.code)) final = error;
        throw error;
      });
      last = describeSnapshot(snapshot);
      if (!seen(snapshot)) throw new Error(last);
      return snapshot;
    };
    return eventually(look, { what, deadlineMs, failed: () => final?.message }).catch((error: unknown) => {
      if (final) throw final;
      throw new Violation(`${what} within ${deadlineMs} ms`, last === "nothing" ? String(error) : last);
    });
  }

  /** Waits until its compute is up: for the probe's word where there is one, for the backend's, or the driver's. */
  async up(): Promise<Snapshot> {
    this.trial.cameUp ??= false;
    const { runs, list } = this.trial.subject.backend ?? {};
    if (runs)
      await becomes(
        "compute that runs",
        () => runs(this.id),
        () => "it does not run",
        UP_MS,
      );
    const snapshot = await this.until("a sandbox that is up", isUp);
    // A driver may answer first and provision later.
    if (!runs && list)
      await becomes(
        "something in the backend",
        async () => (await list(this.id)).length > 0,
        () => describeSnapshot(snapshot),
        UP_MS,
      );
    this.trial.cameUp = true;
    return snapshot;
  }

  /** Waits until a gateway would take it for stopped. */
  stopped = (): Promise<Snapshot> => this.until("a sandbox that a gateway takes for stopped", isStopped);

  /** What its workload was given. */
  workload = (): Promise<Workload> => this.trial.backend("inspect")(this.id);

  /** Waits until the probe in it said that it was started, so often in this workspace. */
  async started(times = 1): Promise<void> {
    if (this.trial.subject.owned === undefined)
      this.trial.skip("the supervisor is the driver's own, and does not tell what it was given");
    const inspect = this.trial.backend("inspect");
    let told = 0;
    await becomes(
      `the workspace of ${this.name} to see start ${times}`,
      async () => (told = (await inspect(this.id)).probe?.starts ?? 0) === times,
      () => `${told} starts`,
      UP_MS,
    );
  }

  /** What the probe in it was given; waits until it told. */
  async given(): Promise<Given> {
    const ask = this.trial.backend("ask");
    await this.started();
    await ask(this.id);
    const told = async () => {
      const { probe } = await this.workload();
      if (!probe?.given) throw new Error("it was asked, and told nothing");
      return probe.given;
    };
    return eventually(told, {
      what: `the probe in ${this.name} to tell what it was given`,
      deadlineMs: UP_MS,
    });
  }
}

/** A driver process that a check started. */
export class DriverProcess {
  constructor(
    readonly keeper: Connection,
    readonly stack: number,
    readonly number: number,
    readonly pid: number,
    readonly told: Partial<DriverContext> & { socket: string },
    /** Where checks dial it. */
    readonly front: string,
  ) {}

  /** Where it serves. */
  get socket(): string {
    return this.told.socket;
  }

  state = () => this.keeper.call("driverState", this.stack, this.number);

  /** The same, of one that has ended: while it lives the keeper, who reads its log each time, is not asked. */
  #end = async () => (isAlive(this.pid) ? undefined : this.state());

  async signal(name: NodeJS.Signals): Promise<void> {
    await this.keeper.call("signalDriver", this.stack, this.number, name);
  }

  /** Waits until it ended. Resolves with how, such as "exit code 0". @throws Violation after `deadlineMs`. */
  async ended(deadlineMs: number): Promise<string> {
    const look = async () => {
      const ended = (await this.#end())?.ended;
      if (ended === undefined) throw new Error("it runs");
      return ended;
    };
    return eventually(look, { what: "the driver to end", deadlineMs }).catch(async () => {
      const { tail } = await this.state();
      throw new Violation(
        `the driver to end within ${deadlineMs} ms`,
        `it runs; its log ends with ${JSON.stringify(tail.slice(-200))}`,
      );
    });
  }

  async kill(): Promise<void> {
    await this.signal("SIGKILL");
    await this.ended(5_000);
  }

  /** Waits until it answers. @throws Violation, with its end and its log's tail, when it does not. */
  async answers(trial: Trial, deadlineMs = 30_000): Promise<Driver> {
    const driver = trial.connect(this.socket);
    const failed = async () => {
      const end = await this.#end();
      return end?.ended && `it ended with ${end.ended}: ${end.tail.slice(-300)}`;
    };
    const waiting = { what: "a driver that answers GetCapabilities", deadlineMs, failed };
    const ask = async () => {
      await mustListen(this.socket);
      return driver.getCapabilities(2_000);
    };
    await eventually(ask, waiting).catch((error: Error) => {
      throw new Violation(`a driver that answers within ${deadlineMs} ms`, error.message);
    });
    return this.front === this.socket ? driver : trial.connect(this.front);
  }
}

/** Repeats `look` until it is true. @throws Violation, with what `seen` says then, after `deadlineMs`. */
export async function becomes(
  what: string,
  look: () => boolean | Promise<boolean>,
  seen: () => unknown,
  longestMs = 5_000,
): Promise<void> {
  const deadlineMs = patient(longestMs);
  const attempt = async () => {
    if (!(await look())) throw new Error("not yet");
  };
  await eventually(attempt, { what, deadlineMs }).catch(() =>
    holds(false, `${what} within ${deadlineMs} ms`, seen()),
  );
}

export const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex");

/** @throws Violation unless two snapshots say the same to a gateway: id, name, deleting, and the phase that follows. */
export function agree(what: string, one: Snapshot, other: Snapshot): void {
  const said = ({ id, name, status }: Snapshot) => ({ id, name, deleting: status?.deleting ?? false });
  same(what, said(one), said(other));
  same(`${what}: up`, isUp(one), isUp(other));
}
