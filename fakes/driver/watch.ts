// SPDX-License-Identifier: Apache-2.0

/**
 * Watching: one subscription to the engine's events for all watchers, and the driver's memory of which containers there
 * are.
 *
 * Order: all that is sent about one sandbox goes through one queue, first snapshots included, so that no watcher sees
 * an older state after a newer one; different sandboxes do not wait for each other.
 */
import type { WatchSandboxesEvent } from "../../proto/v0.0/types/openshell/compute/v1/WatchSandboxesEvent.ts";
import type { Logger } from "../log.ts";
import { internal, type Status, unavailable } from "../status.ts";
import { Slots, Turns } from "./order.ts";
import { type Event, type Inspect, isGone, type ListEntry, messageOf, type Podman } from "./podman.ts";
import { describe, hasExited, type Identity, identity, unsure } from "./snapshot.ts";

const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 2_000;
const CHANGES = /^(create|start|stop|die|died|pause|unpause|health_status.*)$/;

/** A burst of events or a long list is no reason for a burst of connections. */
export const MAX_INSPECTIONS = 16;

export interface Watcher {
  send(event: WatchSandboxesEvent): void;
  fail(error: Status): void;
}

export class Watch {
  readonly #watchers = new Set<Watcher>();
  readonly #turns = new Turns();
  readonly #inspections = new Slots(MAX_INSPECTIONS);
  readonly #ending = new AbortController();
  /** Container id to sandbox id, of every container of this driver that was seen and not yet reported gone. */
  readonly #known = new Map<string, string>();
  /**
   * The end of a sandbox's last run, when it must not be reported any more: `restarted` once StartSandbox has begun,
   * otherwise because StopSandbox has reported it. Events of it may still be on their way.
   */
  readonly #fences = new Map<string, { finishedAt: string; restarted: boolean }>();
  /** The end that all watchers were told last, by sandbox. */
  readonly #reportedEnds = new Map<string, string>();
  /** The watchers that wait for the first word of a container, by its id. */
  readonly #newcomers = new Map<string, { watchers: Watcher[]; told: Promise<void> }>();
  #subscription: Promise<void> | null = null;

  /** @param onVanished told of every sandbox whose container is gone, whoever removed it */
  constructor(
    private readonly podman: Podman,
    private readonly network: string,
    private readonly log: Logger,
    private readonly onVanished: (sandboxId: string) => void,
  ) {}

  // Subscription

  /** Subscribes unless it is subscribed. @throws EngineError if the engine cannot be reached. */
  subscribe(): Promise<void> {
    this.#subscription ??= this.#open().catch((error: unknown) => {
      this.#subscription = null;
      throw error;
    });
    return this.#subscription;
  }

  async #open(): Promise<void> {
    const failed = new AbortController();
    const events = await this.podman.events(AbortSignal.any([this.#ending.signal, failed.signal]));
    const entries = await this.ours().catch((error: unknown) => {
      failed.abort();
      throw error;
    });
    const present = new Map(entries.map(({ Id, Labels }) => [Id, identity(Labels) as Identity]));
    // What went away while nobody told us.
    for (const [containerId, id] of this.#known) {
      if (!present.has(containerId)) void this.#enqueue(id, () => this.#gone(containerId, id));
    }
    for (const [containerId, who] of present) this.#known.set(containerId, who.id);
    void this.#follow(events);
  }

  async #follow(events: AsyncGenerator<Event>): Promise<void> {
    try {
      for await (const event of events) this.#receive(event);
    } catch (error) {
      if (!this.#ending.signal.aborted) {
        this.log.warn("podman event stream failed", { error: messageOf(error) });
      }
    }
    if (this.#ending.signal.aborted) return;
    this.log.warn("podman event stream ended unexpectedly; watchers must reconnect");
    this.#subscription = null;
    this.#failAll(internal("podman event stream ended unexpectedly"));
    for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(pause * 2, LONGEST_PAUSE_MS)) {
      await Bun.sleep(pause);
      // A new watcher may have subscribed meanwhile.
      if (this.#subscription || this.#ending.signal.aborted) return;
      await this.subscribe().catch((error: unknown) =>
        this.log.debug("podman is not back yet", { error: messageOf(error) }),
      );
    }
  }

  /** Every container of this driver, as the engine lists it. */
  async ours(): Promise<ListEntry[]> {
    const all = await this.podman.list();
    return all.filter(({ Labels, Networks }) => identity(Labels) && Networks?.includes(this.network));
  }

  // Reports

  #receive({ Action, Actor }: Event): void {
    const who = identity(Actor.Attributes);
    if (!who) return;
    if (Action === "remove") void this.#enqueue(who.id, () => this.#gone(Actor.ID, who.id));
    else if (CHANGES.test(Action)) void this.#enqueue(who.id, () => this.#refresh(Actor.ID, who));
  }

  #enqueue(sandboxId: string, step: () => void | Promise<void>): Promise<void> {
    return this.#turns.run(sandboxId, step).catch((error: unknown) => {
      this.log.error("could not report a sandbox", { sandbox_id: sandboxId, error: messageOf(error) });
    });
  }

  /** Reads a container's state and reports it: to all, or for the `first` time to some. */
  async #refresh(containerId: string, who: Identity, first?: Watcher[]): Promise<void> {
    // Who watches later is told of all there is.
    if (!first && this.#watchers.size === 0) return;
    const found = await this.#inspections.run(() =>
      this.podman.inspect(containerId).catch((error: unknown) => error),
    );
    if (isGone(found)) return this.#gone(containerId, who.id);
    if (!(found instanceof Error)) return this.#report(found as Inspect, first);
    if (!this.#known.has(containerId)) return;
    this.#send({ sandbox: { sandbox: unsure(who, { Id: containerId, Name: "" }, found) } }, first);
  }

  #report(container: Inspect, first?: Watcher[]): void {
    const sandbox = describe(container);
    const networks = container.NetworkSettings?.Networks ?? {};
    if (!sandbox?.id || !(this.network in networks)) return;
    this.#known.set(container.Id, sandbox.id);
    const fence = this.#fences.get(sandbox.id);
    const stale = hasExited(container) && fence?.finishedAt === container.State.FinishedAt;
    // A new watcher has not seen the end of a stopped sandbox; but once it is restarted, nobody may.
    if (stale && (fence.restarted || !first)) return;
    if (hasExited(container) && !first) this.#reportedEnds.set(sandbox.id, container.State.FinishedAt);
    this.#send({ sandbox: { sandbox } }, first);
  }

  #gone(containerId: string, sandboxId: string): void {
    if (!this.#known.delete(containerId)) return;
    this.#fences.delete(sandboxId);
    this.#reportedEnds.delete(sandboxId);
    this.#send({ deleted: { sandbox_id: sandboxId } });
    this.onVanished(sandboxId);
  }

  #send(event: WatchSandboxesEvent, to: Iterable<Watcher> = this.#watchers): void {
    for (const watcher of to) watcher.send(event);
  }

  // What the driver itself does to a sandbox

  /**
   * Reports a stopped container, unless the engine's own event was faster, and its end only this once: a gateway that
   * reads it after the next StartSandbox takes the sandbox for failed. Resolves when it is sent.
   */
  stopped(container: Inspect, sandboxId: string): Promise<void> {
    return this.#enqueue(sandboxId, () => {
      if (this.#reportedEnds.get(sandboxId) !== container.State.FinishedAt) this.#report(container);
      this.#fences.set(sandboxId, { finishedAt: container.State.FinishedAt, restarted: false });
    });
  }

  /** From now on the end of the run before this start is not reported. */
  restarting(container: Inspect, sandboxId: string): void {
    if (!hasExited(container)) return;
    this.#fences.set(sandboxId, { finishedAt: container.State.FinishedAt, restarted: true });
  }

  /** The start failed: the end of the last run is the truth again. */
  notRestarted(sandboxId: string): void {
    this.#fences.delete(sandboxId);
  }

  /** Has the end of a container reported, though no event told that there is one. */
  know(containerId: string, sandboxId: string): void {
    this.#known.set(containerId, sandboxId);
  }

  /** The container that a sandbox was last known to have. */
  containerOf(sandboxId: string): string | undefined {
    for (const [containerId, id] of this.#known) if (id === sandboxId) return containerId;
    return undefined;
  }

  /** Reports that a container was removed, unless that was reported. Resolves when it is sent. */
  removed(containerId: string, sandboxId: string): Promise<void> {
    return this.#enqueue(sandboxId, () => this.#gone(containerId, sandboxId));
  }

  /** A create that was cancelled before it had a container. */
  cancelled(sandboxId: string): Promise<void> {
    const none = `cancelled-${sandboxId}`;
    this.know(none, sandboxId);
    return this.removed(none, sandboxId);
  }

  // Watchers

  /** Adds a watcher: it gets every change from now on, and the state of every sandbox. @throws EngineError */
  async add(watcher: Watcher): Promise<void> {
    await this.subscribe();
    this.#watchers.add(watcher);
    // Asked of the engine, not remembered: it may have lost an event.
    const entries = await this.ours();
    const first = entries.map(({ Id, Labels }) => {
      const who = identity(Labels) as Identity;
      this.#known.set(Id, who.id);
      return this.#introduce(Id, who, watcher);
    });
    await Promise.all(first);
  }

  /** Tells a new watcher of a container. Those who come before it is looked at share that look. */
  #introduce(containerId: string, who: Identity, watcher: Watcher): Promise<void> {
    const waiting = this.#newcomers.get(containerId);
    if (waiting) {
      waiting.watchers.push(watcher);
      return waiting.told;
    }
    const watchers = [watcher];
    const told = this.#enqueue(who.id, () => {
      this.#newcomers.delete(containerId);
      return this.#refresh(containerId, who, watchers);
    });
    this.#newcomers.set(containerId, { watchers, told });
    return told;
  }

  remove(watcher: Watcher): void {
    this.#watchers.delete(watcher);
  }

  #failAll(error: Status): void {
    const watchers = [...this.#watchers];
    this.#watchers.clear();
    for (const watcher of watchers) watcher.fail(error);
  }

  end(): void {
    this.#ending.abort();
    this.#failAll(unavailable("driver is shutting down"));
  }
}
