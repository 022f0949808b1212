// SPDX-License-Identifier: Apache-2.0

/**
 * The life of sandboxes between store and driver: create, stop, start and delete with their recovery after a driver's
 * error; the watch and reconcile loops that bring in what the platform says; the sweeps at start and at shutdown.
 *
 * The store is synchronous, so a read and the write that follows it need no lock. What lies on both sides of a driver
 * call is guarded by a gate a sandbox (one lifecycle operation at a time) and by the version of the row it wrote.
 */
import * as grpc from "@grpc/grpc-js";
import type {
  DriverSandbox,
  DriverSandbox__Output,
} from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { WatchSandboxesEvent__Output } from "../../proto/v0.0/types/openshell/compute/v1/WatchSandboxesEvent.ts";
import type { Sandbox__Output } from "../../proto/v0.0/types/openshell/v1/Sandbox.ts";
import type { Logger } from "../log.ts";
import { loggedByTonic } from "./tonic.ts";
import { internal, notFound, precondition, Status, statusOf } from "../status.ts";
import type { RemoteDriver } from "./driver.ts";
import { Failure, wholeStatus } from "./failure.ts";
import type { Feeds } from "./feeds.ts";
import * as phases from "./phases.ts";
import { phaseOf } from "./phases.ts";
import type { Sessions } from "./sessions.ts";
import { NameTaken, type Entry, type Store } from "./store.ts";
import { driverSandbox } from "./translation.ts";

const WATCH_RETRY_MS = 2_000;
const RECONCILE_MS = 60_000;
/** How long a row that the driver does not list is left alone, counted from its creation. */
const ORPHAN_GRACE_MS = 300_000;
const RECONCILE_ROWS = 500;
const SHUTDOWN_STOPS = 16;

/** Who waits for an operation's answer: the call, as gRPC knows it. */
export interface Caller {
  /** Whether they have left. */
  readonly cancelled: boolean;
}

/** The gateway itself waits for what it does. */
const STAYS: Caller = { cancelled: false };

export interface ComputeParts {
  driver: RemoteDriver;
  store: Store;
  feeds: Feeds;
  sessions: Sessions;
  log: Logger;
}

export class Compute {
  #gates = new Map<string, Promise<unknown>>();
  #shutdown = new AbortController();
  private readonly driver: RemoteDriver;
  private readonly store: Store;
  private readonly feeds: Feeds;
  private readonly sessions: Sessions;
  private readonly log: Logger;

  constructor({ driver, store, feeds, sessions, log }: ComputeParts) {
    this.driver = driver;
    this.store = store;
    this.feeds = feeds;
    this.sessions = sessions;
    this.log = log;
  }

  // Create

  /** Asks the driver whether it would take the sandbox. Its code and message go to the user unchanged. */
  async validate(sandbox: Sandbox__Output): Promise<void> {
    const request = { sandbox: driverSandbox(sandbox, this.driver.name) };
    await this.driver.call((client) => client.ValidateSandboxCreate, request);
  }

  /** Stores the sandbox and has the driver make it. After an error nothing stays in the store. */
  async create(sandbox: Sandbox__Output, token: string): Promise<Sandbox__Output> {
    const { id, name } = sandbox.metadata!;
    const request: DriverSandbox = driverSandbox(sandbox, this.driver.name);
    request.spec!.sandbox_token = token;
    let stored: Sandbox__Output;
    try {
      stored = this.store.sandboxes.insert(sandbox);
    } catch (error) {
      if (error instanceof NameTaken)
        throw new Status(grpc.status.ALREADY_EXISTS, `sandbox '${name}' already exists`);
      throw error;
    }
    try {
      await this.driver.call((client) => client.CreateSandbox, { sandbox: request });
    } catch (error) {
      this.store.sandboxes.delete(id);
      const { code, details } = statusOf(error);
      if (code === grpc.status.ALREADY_EXISTS) throw new Status(code, "sandbox already exists");
      if (code === grpc.status.FAILED_PRECONDITION) throw precondition(details);
      throw internal(`create sandbox failed: ${details}`);
    }
    this.feeds.changed(id);
    return stored;
  }

  // Stop and start

  stop(caller: Caller, workspace: string, name: string): Promise<Sandbox__Output> {
    return this.#transition(caller, workspace, name, "Stopping");
  }

  start(caller: Caller, workspace: string, name: string): Promise<Sandbox__Output> {
    return this.#transition(caller, workspace, name, "Starting");
  }

  /** A sandbox already in transition is driven again: whoever waited at the gate knows that nobody else does it. */
  async #transition(
    caller: Caller,
    workspace: string,
    name: string,
    to: "Stopping" | "Starting",
  ): Promise<Sandbox__Output> {
    const { id, publicName } = this.#find(workspace, name);
    const [verb, from, done] =
      to === "Stopping" ? (["stop", "Ready", "Stopped"] as const) : (["start", "Stopped", "Ready"] as const);
    return this.#alone(id, caller, async () => {
      const current = this.#unchanged(id, publicName, verb);
      const phase = phaseOf(current);
      if (phase === done) return current;
      if (phase !== from && phase !== to) {
        throw precondition(`sandbox must be ${from} to ${verb} (current phase: ${phase})`);
      }
      const transition =
        phase === to ? current : this.#update(id, (sandbox) => phases.beginTransition(sandbox, to))!;
      const request = { sandbox_id: id, sandbox_name: publicName };
      try {
        if (to === "Stopping") await this.driver.call((client) => client.StopSandbox, request);
        else await this.driver.call((client) => client.StartSandbox, request);
      } catch (error) {
        await this.#recoverTransition(transition, current, to);
        const { code, details } = statusOf(error);
        throw new Status(code, `${verb} sandbox failed: ${details}`);
      }
      const latest = this.#get(id);
      return to === "Stopping" ? this.#completeStop(latest) : latest;
    });
  }

  /** The driver's OK means that the compute has stopped. */
  #completeStop(latest: Sandbox__Output): Sandbox__Output {
    const { id } = latest.metadata!;
    const phase = phaseOf(latest);
    if (phase !== "Stopped" && phase !== "Stopping") {
      throw new Status(grpc.status.ABORTED, "sandbox lifecycle changed while stop completed");
    }
    const stopped =
      phase === "Stopped"
        ? latest
        : this.#update(id, (sandbox) =>
            phases.setNotReady(sandbox, "Stopped", "Stopped", "Sandbox compute is stopped"),
          )!;
    this.sessions.disconnect(id);
    return stopped;
  }

  /**
   * After a failed stop or start the driver is asked what is. A sandbox in the wanted state, or broken, is taken as it
   * is; one in its old state gets its old record back; where nobody knows, the transition stays and may be retried.
   */
  async #recoverTransition(
    transition: Sandbox__Output,
    previous: Sandbox__Output,
    to: "Stopping" | "Starting",
  ) {
    const { id, name, resource_version } = transition.metadata!;
    const snapshot = await this.driver.getSandbox(id, name).catch(() => undefined);
    if (!snapshot?.status) {
      this.log.warn("Could not resolve ambiguous sandbox lifecycle outcome; retaining transition", {
        sandbox_id: id,
      });
      return;
    }
    if (to === "Stopping" && phases.confirmsStopping(snapshot)) return;
    const wanted = phases.confirmsStopped(snapshot) === (to === "Stopping");
    if (!wanted && phases.derivePhase(snapshot.status) !== "Error") {
      this.#update(id, () => previous, resource_version);
      return;
    }
    const after = this.#take(snapshot, resource_version);
    if (after && phaseOf(after) === "Stopped") this.sessions.disconnect(id);
  }

  // Delete

  /** Works from every phase. The answer is whether the driver had something to remove. */
  async delete(caller: Caller, workspace: string, name: string): Promise<boolean> {
    const { id, publicName } = this.#find(workspace, name);
    return this.#alone(id, caller, async () => {
      const previous = this.store.sandboxes.get(id);
      if (!previous) return true; // another delete, at the gate before this one, has finished
      this.#unchanged(id, publicName, "delete");
      if (phaseOf(previous) === "Deleting") return true;
      const deleting = this.#update(id, (sandbox) => phases.setPhase(sandbox, "Deleting"))!;
      try {
        const request = { sandbox_id: id, sandbox_name: publicName };
        const { deleted } = await this.driver.call((client) => client.DeleteSandbox, request);
        if (!deleted) this.#remove(id);
        return deleted;
      } catch (error) {
        await this.#recoverDelete(deleting, previous);
        throw internal(`delete sandbox failed: ${statusOf(error).details}`);
      }
    });
  }

  async #recoverDelete(deleting: Sandbox__Output, previous: Sandbox__Output): Promise<void> {
    const { id, name, resource_version } = deleting.metadata!;
    const unknown = Symbol();
    const snapshot = await this.driver.getSandbox(id, name).catch(() => unknown);
    if (snapshot === undefined) this.#remove(id, resource_version);
    else if (typeof snapshot === "object" && snapshot.status) this.#take(snapshot, resource_version);
    else this.#update(id, () => previous, resource_version);
  }

  // What the driver reports

  /** Starts the watch and reconcile loops; they end with `shutdown`. */
  startLoops(): void {
    void this.#watchLoop();
    void this.#reconcileLoop();
  }

  async #watchLoop(): Promise<void> {
    const { signal } = this.#shutdown;
    while (!signal.aborted) {
      let hasBegun = false;
      try {
        for await (const event of this.driver.watch(signal, () => (hasBegun = true))) {
          if (signal.aborted) return;
          this.#applyEvent(event);
        }
        if (!signal.aborted) this.log.warn("Compute driver watch stream ended unexpectedly");
      } catch (error) {
        const what = hasBegun ? "errored" : "failed to start";
        if (!signal.aborted)
          this.log.warn(`Compute driver watch stream ${what}`, { error: loggedByTonic(statusOf(error)) });
      }
      await pause(WATCH_RETRY_MS, signal);
    }
  }

  #applyEvent({ sandbox, deleted, platform_event }: WatchSandboxesEvent__Output): void {
    try {
      if (sandbox?.sandbox) this.#applySnapshot(sandbox.sandbox);
      else if (deleted) this.#remove(deleted.sandbox_id);
      else if (platform_event?.event) this.feeds.event(platform_event.sandbox_id, platform_event.event);
    } catch (error) {
      this.log.warn("Failed to apply compute driver event", { error: String(error) });
    }
  }

  /**
   * A sandbox that the store does not know, or that is being deleted, is left as it is.
   * @throws Error for a snapshot under another name: it is refused as a whole
   */
  #applySnapshot(snapshot: DriverSandbox__Output): void {
    const existing = this.store.sandboxes.get(snapshot.id);
    if (!existing || phaseOf(existing) === "Deleting") return;
    const before = phaseOf(existing);
    const after = this.#take(snapshot);
    if (!after) throw new Error("encode error: sandbox name cannot be changed after creation");
    const phase = phaseOf(after);
    if (phase === "Error" && before !== "Error") {
      const ready = after.status?.conditions.find(({ type }) => type === "Ready");
      this.log.warn("Sandbox failed to become ready", {
        sandbox_id: snapshot.id,
        sandbox_name: snapshot.name,
        reason: ready?.reason ?? "",
        message: ready?.message ?? "",
      });
    }
    if (phase === "Stopped" && before !== "Stopped") this.sessions.disconnect(snapshot.id);
  }

  /** Applies a snapshot, unless it has another name or the row another version than `expected`. */
  #take(snapshot: DriverSandbox__Output, expected?: string): Sandbox__Output | undefined {
    const { id, name } = snapshot;
    if (this.store.sandboxes.get(id)?.metadata!.name !== name) return undefined;
    const connected = this.sessions.has(id);
    return this.#update(id, (sandbox) => phases.applySnapshot(sandbox, snapshot, connected), expected);
  }

  async #reconcileLoop(): Promise<void> {
    const { signal } = this.#shutdown;
    while (!signal.aborted) {
      try {
        await this.#reconcile();
      } catch (error) {
        if (!signal.aborted)
          this.log.warn("Store reconciliation sweep failed", { error: loggedByTonic(statusOf(error)) });
      }
      await pause(RECONCILE_MS, signal);
    }
  }

  /** Compares the store with the driver's list. Rows that change meanwhile are left to whoever changed them. */
  async #reconcile(): Promise<void> {
    const startedAt = Date.now();
    const { sandboxes: listed } = await this.driver.call((client) => client.ListSandboxes, {});
    for (const { id, name } of listed) {
      const entry = this.store.sandboxes.entry(id);
      if (!entry || entry.updatedAtMs > startedAt) continue;
      const current = await this.driver.getSandbox(id, name);
      if (current && this.#untouched(id, entry)) this.#applySnapshot(current);
    }
    const ids = new Set(listed.map(({ id }) => id));
    for (const row of this.store.sandboxes.list({ limit: RECONCILE_ROWS, offset: 0 })) {
      if (!ids.has(row.metadata!.id)) await this.#prune(row.metadata!.id, startedAt);
    }
  }

  async #prune(id: string, startedAt: number): Promise<void> {
    const entry = this.store.sandboxes.entry(id);
    if (!entry || entry.updatedAtMs > startedAt || Date.now() - entry.createdAtMs < ORPHAN_GRACE_MS) return;
    const { name } = entry.message.metadata!;
    const current = await this.driver.getSandbox(id, name);
    if (!this.#untouched(id, entry)) return;
    if (current) this.#applySnapshot(current);
    else if (["Stopping", "Stopped", "Starting"].includes(phaseOf(entry.message))) {
      const message =
        "The compute driver could not find the retained sandbox resource; delete the sandbox to clean up its remaining state";
      this.#update(id, (sandbox) => phases.setNotReady(sandbox, "Error", "ComputeResourceMissing", message));
    } else {
      this.log.info("Removing sandbox from store after it disappeared from the compute driver snapshot", {
        sandbox_id: id,
        sandbox_name: name,
      });
      this.#remove(id);
    }
  }

  #untouched = (id: string, entry: Entry<Sandbox__Output>) =>
    this.store.sandboxes.entry(id)?.version === entry.version;

  // What the supervisor reports

  connected(id: string, instanceId: string): void {
    const sandbox = this.store.sandboxes.get(id);
    if (!sandbox || !phases.heedsSession(phaseOf(sandbox), true)) return;
    this.#update(id, (row) => phases.applyConnected(row, instanceId));
  }

  disconnected(id: string): void {
    const sandbox = this.store.sandboxes.get(id);
    if (!sandbox || !phases.heedsSession(phaseOf(sandbox), false)) return;
    this.#update(id, phases.applyDisconnected);
  }

  mainProcessExited(id: string, instanceId: string, exitCode: number): void {
    const sandbox = this.store.sandboxes.get(id);
    if (!sandbox || !phases.heedsExit(sandbox, instanceId)) return;
    this.#update(id, (row) => phases.applyMainProcessExit(row, instanceId, exitCode));
  }

  // Workspaces

  /** UNIMPLEMENTED is fine: most drivers have nothing to release. */
  async deleteWorkspace(workspace: string): Promise<void> {
    try {
      await this.driver.call((client) => client.DeleteWorkspace, { workspace });
    } catch (error) {
      const { code, details } = statusOf(error);
      if (code === grpc.status.UNIMPLEMENTED) return;
      throw new Status(code, `delete workspace platform resources failed: ${wholeStatus({ code, details })}`);
    }
  }

  // Gateway start and shutdown

  /** Finishes what a former gateway had begun, then starts everything that should run. Errors are recorded, not thrown. */
  async startSweep(): Promise<void> {
    for (const id of this.store.sandboxes.ids()) await this.#finishTransition(id);
    if (!this.driver.capabilities.gateway_manages_lifecycle) return;
    for (const id of this.store.sandboxes.ids()) await this.#startAgain(id);
  }

  async #finishTransition(id: string): Promise<void> {
    const sandbox = this.#get(id);
    const phase = phaseOf(sandbox);
    const request = { sandbox_id: id, sandbox_name: sandbox.metadata!.name };
    try {
      if (phase === "Stopping") {
        await this.driver.call((client) => client.StopSandbox, request);
        this.#completeStop(sandbox);
      } else if (phase === "Starting") await this.driver.call((client) => client.StartSandbox, request);
    } catch (error) {
      const verb = phase === "Stopping" ? "stop" : "start";
      this.log.warn(`Failed to recover sandbox ${verb}`, { sandbox_id: id, error: statusOf(error).details });
    }
  }

  async #startAgain(id: string): Promise<void> {
    const sandbox = this.#get(id);
    const phase = phaseOf(sandbox);
    if (!phases.shouldRun(phase)) return;
    const names = { sandbox_id: id, sandbox_name: sandbox.metadata!.name };
    try {
      await this.driver.call((client) => client.StartSandbox, names);
      this.log.info("Started sandbox during gateway startup", { ...names, phase });
    } catch (error) {
      const { code, details } = statusOf(error);
      const missing = code === grpc.status.NOT_FOUND;
      this.log.warn(
        missing
          ? "Cannot start sandbox: backend resource is missing"
          : "Failed to start sandbox during gateway startup",
        {
          ...names,
          error: details,
        },
      );
      const [reason, message] = missing
        ? ["BackendResourceMissing", "Sandbox compute resource disappeared while the gateway was offline"]
        : ["StartFailed", `Failed to start sandbox during gateway startup: ${details}`];
      this.#update(id, (row) => phases.setNotReady(row, "Error", reason, message));
    }
  }

  /**
   * Ends the loops and stops what runs, if the driver wants that. The phases in the store stay: they say what the next
   * gateway has to start.
   * @throws Failure when a sandbox could not be stopped
   */
  async shutdown(): Promise<void> {
    this.#shutdown.abort();
    if (!this.driver.capabilities.gateway_manages_lifecycle) return;
    const waiting = this.store.sandboxes.ids();
    let stopped = 0;
    let failed = 0;
    const stopNext = async (): Promise<void> => {
      for (let id = waiting.shift(); id !== undefined; id = waiting.shift()) {
        const outcome = await this.#alone(id, STAYS, () => this.#stopForShutdown(id!));
        if (outcome === true) stopped++;
        if (outcome === false) failed++;
      }
    };
    await Promise.all(Array.from({ length: SHUTDOWN_STOPS }, stopNext));
    if (stopped || failed) this.log.info("Sandbox shutdown stop sweep complete", { stopped, failed });
    if (failed) {
      throw Failure.execution(
        `gateway shutdown cleanup failed: failed to stop ${failed} sandbox(es) during gateway shutdown`,
      );
    }
  }

  async #stopForShutdown(id: string): Promise<boolean | undefined> {
    const sandbox = this.store.sandboxes.get(id);
    if (!sandbox || !phases.shouldRun(phaseOf(sandbox))) return undefined;
    const names = { sandbox_id: id, sandbox_name: sandbox.metadata!.name };
    try {
      await this.driver.call((client) => client.StopSandbox, names);
      this.log.info("Stopped sandbox during gateway shutdown", { ...names, phase: phaseOf(sandbox) });
      return true;
    } catch (error) {
      this.log.warn("Failed to stop sandbox during gateway shutdown", {
        ...names,
        error: statusOf(error).details,
      });
      return false;
    }
  }

  // Rows

  #find(workspace: string, name: string): { id: string; publicName: string } {
    const found = this.store.sandboxes.byName(workspace, name);
    if (!found) throw notFound("sandbox not found");
    return { id: found.metadata!.id, publicName: found.metadata!.name };
  }

  #get(id: string): Sandbox__Output {
    const sandbox = this.store.sandboxes.get(id);
    if (!sandbox) throw notFound("sandbox not found");
    return sandbox;
  }

  #unchanged(id: string, publicName: string, verb: string): Sandbox__Output {
    const current = this.#get(id);
    if (current.metadata!.name === publicName) return current;
    throw new Status(
      grpc.status.ABORTED,
      `sandbox name changed while the ${verb} request was waiting; retry explicitly`,
    );
  }

  #update(id: string, change: (sandbox: Sandbox__Output) => Sandbox__Output | void, expected?: string) {
    const before = this.store.sandboxes.get(id);
    const after = this.store.sandboxes.update(id, change, expected);
    if (!after) return undefined;
    const [oldPhase, newPhase] = [before && phaseOf(before), phaseOf(after)];
    if (oldPhase !== newPhase) {
      const { name } = after.metadata!;
      this.log.info("Sandbox phase changed", {
        sandbox_id: id,
        sandbox_name: name,
        old_phase: oldPhase ?? "",
        new_phase: newPhase,
      });
    }
    this.feeds.changed(id);
    return after;
  }

  #remove(id: string, expected?: string): void {
    if (expected !== undefined && !this.store.sandboxes.delete(id, expected)) return;
    this.store.sandboxes.delete(id);
    this.store.policies.forget(id);
    this.feeds.end(id);
  }

  /**
   * Runs one lifecycle operation of a sandbox at a time. It runs to its end even if its caller leaves meanwhile; that of
   * a caller who has left before its turn came does not begin.
   */
  #alone<Result>(id: string, caller: Caller, work: () => Promise<Result>): Promise<Result> {
    const before = this.#gates.get(id) ?? Promise.resolve();
    const result = before.then(() => {
      if (caller.cancelled) throw new Status(grpc.status.CANCELLED, "the caller has left");
      return work();
    });
    const settled = result.catch(() => {});
    this.#gates.set(id, settled);
    void settled.then(() => this.#gates.get(id) === settled && this.#gates.delete(id));
    return result;
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });
}
