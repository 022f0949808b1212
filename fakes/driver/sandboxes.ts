// SPDX-License-Identifier: Apache-2.0

/** The sandboxes of this driver, which are those on its own network: asked for, created, stopped, started, deleted. */
import type {
  DriverSandbox,
  DriverSandbox__Output as Sandbox,
} from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { Logger } from "../log.ts";
import { aborted, alreadyExists, internal, notFound, precondition } from "../status.ts";
import type { Creation } from "./creation.ts";
import { checkName, containerName, secretNames, volumeName } from "./names.ts";
import { Slots, Turns } from "./order.ts";
import {
  CALL_MS,
  goneIsNotFound,
  type Inspect,
  isGone,
  type ListEntry,
  messageOf,
  type Podman,
} from "./podman.ts";
import type { Settings } from "./settings.ts";
import { describe, hasExited, type Identity, identity, unsure } from "./snapshot.ts";
import { MAX_INSPECTIONS, Watch } from "./watch.ts";

const STOPPED_POLL_MS = 20;
const NOT_RUNNING = ["created", "configured", "initialized", "exited", "stopped"];

const noSandbox = () => notFound("sandbox not found");
const shortId = (containerId: string): string => containerId.slice(0, 12);

export class Sandboxes {
  readonly watch: Watch;
  /** Create, stop, start and delete of one sandbox run one after the other. */
  readonly #turns = new Turns();
  readonly #creating = new Map<string, { abort: AbortController; settled: Promise<unknown> }>();
  readonly #deleting = new Set<string>();

  constructor(
    private readonly settings: Settings,
    private readonly podman: Podman,
    private readonly creation: Creation,
    private readonly log: Logger,
  ) {
    this.watch = new Watch(podman, settings.networkName, log, (id) => void this.#sweep(id));
  }

  /** The container of a sandbox of this driver. @throws Status NOT_FOUND */
  async #find(sandboxId: string): Promise<ListEntry> {
    const found = await this.podman.list(sandboxId);
    const ours = found.find(({ Networks }) => Networks?.includes(this.settings.networkName));
    if (!ours) throw noSandbox();
    return ours;
  }

  #post(entry: ListEntry, action: string, timeoutMs?: number): Promise<string> {
    return this.podman.call("POST", `/containers/${entry.Id}/${action}`, { timeoutMs });
  }

  // Asking

  async get(sandboxId: string): Promise<DriverSandbox> {
    const id = this.watch.containerOf(sandboxId) ?? (await this.#find(sandboxId)).Id;
    const sandbox = describe(await this.podman.inspect(id).catch(goneIsNotFound));
    if (!sandbox) throw noSandbox();
    return sandbox;
  }

  async list(): Promise<DriverSandbox[]> {
    const slots = new Slots(MAX_INSPECTIONS);
    const described = (await this.watch.ours()).map(async ({ Id, Names, Labels }) => {
      const found = await slots.run(() => this.podman.inspect(Id).catch((error: unknown) => error));
      if (isGone(found)) return null;
      if (!(found instanceof Error)) return describe(found as Inspect);
      return unsure(identity(Labels) as Identity, { Id, Name: Names[0] ?? "" }, found);
    });
    const sandboxes = (await Promise.all(described)).filter((sandbox) => sandbox !== null);
    const key = ({ name, id }: DriverSandbox): string => `${name}\0${id}`;
    return sandboxes.toSorted((a, b) => (key(a) < key(b) ? -1 : 1));
  }

  // Creating

  async create(sandbox: Sandbox): Promise<void> {
    if (!sandbox.name) throw precondition("sandbox name is required");
    if (!sandbox.id) throw precondition("sandbox id is required");
    checkName(containerName(sandbox), (message) => {
      throw precondition(`invalid input: ${message}`);
    });
    if (this.#creating.has(sandbox.id)) throw alreadyExists("sandbox already exists");
    const abort = new AbortController();
    const settled = this.#createOnce(sandbox, abort.signal).catch((error: unknown) => {
      throw abort.signal.aborted ? aborted("sandbox creation was cancelled") : error;
    });
    this.#creating.set(sandbox.id, { abort, settled: settled.catch(() => {}) });
    await settled.finally(() => this.#creating.delete(sandbox.id));
  }

  async #createOnce(sandbox: Sandbox, signal: AbortSignal): Promise<void> {
    const config = await this.creation.validate(sandbox);
    const made = (containerId: string) => this.watch.know(containerId, sandbox.id);
    await this.#turns.run(sandbox.id, () => this.creation.make(sandbox, config, signal, made));
  }

  // Stopping and starting

  stop(sandboxId: string): Promise<void> {
    return this.#turns.run(sandboxId, async () => {
      const entry = await this.#find(sandboxId);
      if (NOT_RUNNING.includes(entry.State)) return;
      this.log.info("Stopping sandbox container", { sandbox_id: sandboxId, container: shortId(entry.Id) });
      // Podman refuses to stop a paused container, and a frozen process cannot act on a signal.
      if (entry.State === "paused") await this.#post(entry, "unpause").catch(goneIsNotFound);
      const { stopTimeout } = this.settings;
      const timeoutMs = (stopTimeout + 10) * 1000;
      await this.#post(entry, `stop?timeout=${stopTimeout}`, timeoutMs).catch(goneIsNotFound);
      const container = await this.#untilStopped(entry, sandboxId);
      // Before the answer: the gateway may start the sandbox as soon as it has it, and must not see this end then.
      await this.watch.stopped(container, sandboxId);
    });
  }

  /** Podman may answer a stop before its own inspect agrees. */
  async #untilStopped({ Id }: ListEntry, sandboxId: string): Promise<Inspect> {
    const seconds = this.settings.stopTimeout + 5;
    const deadline = performance.now() + seconds * 1000;
    for (;;) {
      const container = await this.podman.inspect(Id).catch(goneIsNotFound);
      if (hasExited(container)) return container;
      if (performance.now() > deadline) {
        throw internal(
          `container ${Id} for sandbox ${sandboxId} did not finish stopping within ${seconds}s ` +
            `(last state: ${container.State.Status})`,
        );
      }
      await Bun.sleep(STOPPED_POLL_MS);
    }
  }

  start(sandboxId: string): Promise<void> {
    return this.#turns.run(sandboxId, async () => {
      const entry = await this.#find(sandboxId);
      if (entry.State === "running") return;
      this.log.info("Starting sandbox container", { sandbox_id: sandboxId, container: shortId(entry.Id) });
      if (entry.State === "paused") {
        await this.#post(entry, "unpause").catch(goneIsNotFound);
        return;
      }
      const before =
        entry.State === "stopping"
          ? await this.#untilStopped(entry, sandboxId)
          : await this.podman.inspect(entry.Id).catch(goneIsNotFound);
      this.watch.restarting(before, sandboxId);
      await this.#post(entry, "start").catch((error: unknown) => {
        this.watch.notRestarted(sandboxId);
        return goneIsNotFound(error);
      });
    });
  }

  // Deleting

  /** Returns whether there was something to delete. */
  async delete(sandboxId: string): Promise<boolean> {
    const creating = this.#creating.get(sandboxId);
    creating?.abort.abort();
    await creating?.settled;
    return this.#turns.run(sandboxId, async () => {
      const known = this.watch.containerOf(sandboxId);
      if (known && (await this.#remove(known, sandboxId))) return true;
      const found = await this.podman.list(sandboxId);
      const ours = found.find(({ Networks }) => Networks?.includes(this.settings.networkName));
      if (ours) {
        this.watch.know(ours.Id, sandboxId);
        return this.#remove(ours.Id, sandboxId);
      }
      if (found.length === 0) await this.#clean(sandboxId);
      if (creating) await this.watch.cancelled(sandboxId);
      return creating !== undefined;
    });
  }

  /** Removes a sandbox's known container, and what it has beside it. Resolves with whether it was there. */
  async #remove(containerId: string, sandboxId: string): Promise<boolean> {
    this.log.info("Deleting sandbox container", { sandbox_id: sandboxId, container: shortId(containerId) });
    const timeout = this.settings.stopTimeout;
    const path = `/containers/${containerId}?force=true&volumes=true&timeout=${timeout}`;
    this.#deleting.add(sandboxId);
    try {
      const existed = await this.podman.call("DELETE", path, { timeoutMs: timeout * 1000 + CALL_MS }).then(
        () => true,
        (error: unknown) => {
          if (!isGone(error)) throw error;
          return false;
        },
      );
      await this.#clean(sandboxId);
      await this.watch.removed(containerId, sandboxId);
      return existed;
    } catch (error) {
      // The engine may have removed it all the same.
      this.#deleting.delete(sandboxId);
      void this.#sweep(sandboxId);
      throw error;
    } finally {
      this.#deleting.delete(sandboxId);
    }
  }

  /** Removes what a sandbox has beside its container. */
  async #clean(sandboxId: string): Promise<void> {
    const unlessRefused = (what: string, removal: Promise<unknown>): Promise<unknown> =>
      removal.catch((error: unknown) => this.log.warn("Failed to remove", { what, error: messageOf(error) }));
    const discard = (path: string) => unlessRefused(path, this.podman.discard(path));
    const secrets = this.podman
      .secrets(secretNames(sandboxId))
      .then((names) => Promise.all(names.map((name) => discard(`/secrets/${name}`))));
    await Promise.all([discard(`/volumes/${volumeName(sandboxId)}`), unlessRefused("secrets", secrets)]);
  }

  /** Cleans up after a container that somebody else removed, unless its sandbox has another one by now. */
  async #sweep(sandboxId: string): Promise<void> {
    if (this.#deleting.has(sandboxId)) return;
    await this.#turns
      .run(sandboxId, async () => {
        if ((await this.podman.list(sandboxId)).length === 0) await this.#clean(sandboxId);
      })
      .catch((error: unknown) => {
        const fields = { sandbox_id: sandboxId, error: messageOf(error) };
        this.log.warn("Failed to clean up after a container", fields);
      });
  }
}
