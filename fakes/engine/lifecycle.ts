// SPDX-License-Identifier: Apache-2.0

/** A container's life: start, stop, signals, pause, end, removal, and what a new engine finds on an old root. */
import { readdirSync } from "node:fs";
import { constants as os } from "node:os";
import { join } from "node:path";
import { instant, timestamp } from "./clock.ts";
import { type Container, healthTest, isUp, signalName, stopSignal } from "./container.ts";
import type { Containers } from "./containers.ts";
import { fail, improper } from "./http.ts";
import { mountAll, unmountAll } from "./mounts.ts";
import { birth, endProcesses, members, sendSignal, signalFirst, startedSoFar } from "./processes.ts";
import { exitOf, pidOf, spawnMonitor } from "./program.ts";
import { removeTree } from "./state.ts";

const DEFAULT_STOP_SECONDS = 10;

export class Lifecycle {
  // What is under way, by container; not part of the state on disk.
  readonly #starting = new Map<string, Promise<void>>();
  readonly #exits = new Map<string, Promise<void>>();
  readonly #removing = new Set<string>();

  constructor(private readonly containers: Containers) {}

  // Start

  /** Returns whether it had to be started. */
  async start(container: Container): Promise<boolean> {
    const { id, status } = container;
    const underWay = this.#starting.get(id);
    if (underWay) {
      await underWay;
      return false;
    }
    if (status === "running") return false;
    if (status !== "created" && status !== "exited") {
      improper(`container ${id} must be in Created or Stopped state to be started`);
    }
    const start = this.#launch(container).finally(() => this.#starting.delete(id));
    this.#starting.set(id, start);
    await start;
    return true;
  }

  async #launch(container: Container): Promise<void> {
    try {
      mountAll(container, () => this.containers.save(container));
      const startedBefore = startedSoFar();
      const monitor = spawnMonitor(container);
      container.monitor = { pid: monitor.pid, birth: birth(monitor.pid), startedBefore };
      this.containers.save(container);
      Object.assign(container, {
        pid: await pidOf(container, monitor),
        status: "running",
        startedAt: timestamp(),
        exitCode: 0,
        error: "",
        health: healthTest(container) ? { Status: "starting", FailingStreak: 0, Log: null } : null,
      });
      this.containers.save(container);
      this.containers.emit(container, "init");
      this.containers.emit(container, "start");
      this.#expectEnd(container, monitor.exited);
    } catch (error) {
      container.error = error instanceof Error ? error.message : String(error);
      await this.#abandon(container);
      throw error;
    }
  }

  /** It does not run after all. */
  async #abandon(container: Container): Promise<void> {
    await endProcesses(container);
    unmountAll(container);
    container.monitor = null;
    this.containers.save(container);
  }

  // End

  #expectEnd(container: Container, end: Promise<unknown>): void {
    this.#exits.set(
      container.id,
      end.then(() => this.#finish(container)),
    );
  }

  /** The container's process has ended: end the rest, note how it went, take its mounts away. */
  async #finish(container: Container): Promise<void> {
    await endProcesses(container);
    const { code, at } = exitOf(container) ?? { code: 137, at: instant() };
    // With one that is removed all goes that is left of its mounts, too.
    const isRemoved = this.#removing.has(container.id);
    if (!isRemoved) unmountAll(container);
    Object.assign(container, {
      status: "exited",
      pid: 0,
      monitor: null,
      exitCode: code,
      finishedAt: timestamp(instant(at)),
    });
    if (!isRemoved) this.containers.save(container);
    this.#exits.delete(container.id);
    this.containers.emit(container, "die", { containerExitCode: String(code), exitCode: String(code) });
    if (!isRemoved) this.containers.emit(container, "cleanup");
  }

  /**
   * Its stop signal, then SIGKILL for everything in it. Returns whether it ran.
   * @param timeoutSeconds between the two; null for what the container's own spec says
   */
  async stop(container: Container, timeoutSeconds: number | null): Promise<boolean> {
    await this.#starting.get(container.id)?.catch(() => {});
    if (container.status === "created" || container.status === "exited") return false;
    if (container.status === "paused") {
      improper(`container ${container.id} is running or paused, refusing to clean up`);
    }
    const exit = this.#exits.get(container.id);
    if (container.status === "running") {
      // Not kept: to an engine that died meanwhile, it runs.
      container.status = "stopping";
      container.stoppedByUser = true;
      const seconds = timeoutSeconds ?? container.spec.stop_timeout ?? DEFAULT_STOP_SECONDS;
      if (seconds > 0) await signalFirst(container, stopSignal(container));
      const expired = Bun.sleep(seconds * 1000).then(() => "expired");
      if ((await Promise.race([exit, expired])) === "expired") await endProcesses(container);
    }
    await exit;
    return true;
  }

  /** @param signal a name or a number, as the API takes it */
  async kill(container: Container, signal: string): Promise<void> {
    const name = parseSignal(signal);
    if (!isUp(container)) {
      improper(`can only kill running containers. ${container.id} is in state ${container.status}`, 409);
    }
    this.containers.emit(container, "kill");
    if (name !== "SIGKILL") return signalFirst(container, name);
    await endProcesses(container);
    await this.#exits.get(container.id);
  }

  /** Resolves with the exit code once it has ended, or is gone. */
  async wait(container: Container): Promise<number> {
    const { id } = container;
    while (container.status !== "exited" && this.containers.all.has(id))
      await (this.#exits.get(id) ?? Bun.sleep(10));
    return container.exitCode;
  }

  // Pause

  pause(container: Container): void {
    if (container.status === "paused") improper(`"${container.id}" is already paused`);
    if (container.status !== "running") improper(`"${container.status}" is not running, can't pause`);
    this.#freeze(container, "SIGSTOP", "paused", "pause");
  }

  unpause(container: Container): void {
    if (container.status !== "paused") improper(`"${container.id}" is not paused, can't unpause`);
    this.#freeze(container, "SIGCONT", "running", "unpause");
  }

  #freeze(container: Container, signal: NodeJS.Signals, status: Container["status"], action: string): void {
    for (const pid of members(container)) sendSignal(pid, signal);
    container.status = status;
    this.containers.save(container);
    this.containers.emit(container, action);
  }

  // Removal

  async remove(container: Container, force: boolean, timeoutSeconds: number | null): Promise<void> {
    const { id } = container;
    await this.#starting.get(id)?.catch(() => {});
    if (isUp(container)) {
      if (!force) {
        improper(
          `cannot remove container ${id} as it is ${container.status} - ` +
            "running or paused containers cannot be removed without force",
        );
      }
      if (container.status === "paused") this.unpause(container);
      this.#removing.add(id);
      await this.stop(container, timeoutSeconds).finally(() => this.#removing.delete(id));
    }
    // Another request may have removed it while this one waited for the process to end.
    if (this.containers.all.has(id)) this.containers.remove(container);
  }

  /** Takes over what an earlier engine on this root left: running containers go on, others are settled. */
  async adoptAll(folder: string): Promise<void> {
    const { all } = this.containers;
    for (const container of all.values()) await this.#adopt(container);
    for (const id of readdirSync(folder)) if (!all.has(id)) removeTree(join(folder, id));
  }

  async #adopt(container: Container): Promise<void> {
    if (isUp(container)) {
      if (container.status === "stopping") container.status = "running";
      this.#expectEnd(container, ended(container.monitor));
    } else if (container.monitor) {
      // The engine died while it started this one: nobody was told that it runs, so it does not.
      await this.#abandon(container);
    }
  }
}

/** Waits for a process that is not our child. */
async function ended(monitor: Container["monitor"]): Promise<void> {
  const alive = (): boolean => monitor !== null && birth(monitor.pid) === monitor.birth;
  while (alive()) await Bun.sleep(50);
}

function parseSignal(text: string): NodeJS.Signals {
  const name = /^\d+$/.test(text)
    ? signalName(Number(text))
    : (`SIG${text.toUpperCase().replace(/^SIG/, "")}` as NodeJS.Signals);
  return name && name in os.signals ? name : fail(500, `invalid signal: ${text}`);
}
