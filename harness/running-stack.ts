// SPDX-License-Identifier: Apache-2.0

/** A stack as a scenario holds it. */
import type { EngineRule, Rule } from "./base/faults.ts";
import { excerpt, readLog } from "./base/log.ts";
import { readableWhole } from "./base/readable.ts";
import { offset } from "./base/text.ts";
import { eventually } from "./base/waiting.ts";
import { Gateway, openClient, type Sandbox } from "./client/gateway.ts";
import type { ScenarioResult } from "./report/model.ts";
import { now } from "./report/record.ts";
import type { Connection } from "./runtime/connection.ts";
import type { Call } from "./runtime/faults/tap.ts";
import type { Deed } from "./runtime/keeper.ts";
import { floodWords } from "./runtime/process.ts";
import type { StackInfo } from "./runtime/stack.ts";

/** What a deletion leaves on the engine may stay for so long, in milliseconds. */
export const SETTLE_MS = 2_000;

/** What of a log a scenario may look through, in bytes. */
const LONGEST_READ = 2 ** 24;

/** A stack as a scenario holds it. */
export class RunningStack {
  readonly gateway: Gateway;
  #any: Promise<Sandbox> | undefined;

  constructor(
    readonly keeper: Connection,
    public info: StackInfo,
    api = openClient(info),
  ) {
    this.gateway = new Gateway(info, (sandboxId) => keeper.call("remember", info.id, sandboxId), api);
    this.gateway.stack = info.id;
  }

  /** The same stack for another user, whose sandboxes are a matter apart. */
  forAnother(): RunningStack {
    return new RunningStack(this.keeper, this.info, this.gateway.api);
  }

  /** The calls between gateway and driver that came after call number `since`, oldest first. */
  calls(since = 0): Promise<Call[]> {
    return this.keeper.call("calls", this.info.id, since);
  }

  lastCall(): Promise<number> {
    return this.keeper.call("lastCall", this.info.id);
  }

  /** Makes the tap treat calls by these rules from now on; without any, it passes everything on again. */
  async rules(...rules: Rule[]): Promise<void> {
    await this.keeper.call("rules", this.info.id, rules);
  }

  /** Makes the proxy before the engine treat calls by these rules from now on; the stack's spec must ask for it. */
  async engineRules(...rules: EngineRule[]): Promise<void> {
    await this.keeper.call("engineRules", this.info.id, rules);
  }

  /** Waits until the driver has asked the engine for such a call, `count` times. */
  async engineAsked(call: string, count = 1): Promise<void> {
    await this.keeper.call("engineAsked", this.info.id, call, count);
  }

  /**
   * Does something to the gateway or the driver. Resolves with how it is then, such as "running" or "exit code 0".
   * @param what see `Deed`: start, stop, kill, terminate, pause, continue.
   */
  async control(who: "gateway" | "driver", what: Deed): Promise<string> {
    const outcome = await this.keeper.call("control", this.info.id, who, what);
    this.info = await this.keeper.call("info", this.info.id);
    return outcome;
  }

  /** The log of the gateway or the driver, without colour codes; of a very long one, its beginning and its end. */
  log(who: "gateway" | "driver"): string {
    return readableWhole(readLog(this.info.logs[who], LONGEST_READ));
  }

  /** A Ready sandbox for whoever needs no more than to run commands in one. It stays until the stack's user is done. */
  anySandbox(): Promise<Sandbox> {
    return (this.#any ??= this.gateway.readySandbox());
  }

  /**
   * Deletes this user's sandboxes, and resolves with what that left behind, a line each.
   * @param settleMs how long it may stay: a driver may answer before the engine has let go of the last volume
   */
  async cleanUp(settleMs = SETTLE_MS): Promise<string[]> {
    const problems = await this.gateway.cleanUp();
    const mine = this.gateway.created;
    const empty = async () => {
      const left = await this.keeper.call("leftovers", this.info.id, mine);
      if (left.length > 0) throw new Error(left.join("\n"));
      return left;
    };
    const waiting = { what: "nothing left on the engine", deadlineMs: settleMs };
    const removed = () => this.keeper.call("removeLeftovers", this.info.id, mine);
    const unknown = (error: Error) => [error.message];
    const left = mine.length > 0 ? await eventually(empty, waiting).catch(removed).catch(unknown) : [];
    return [...problems, ...left];
  }

  /** Stops the stack. Resolves with what its sandboxes left behind, a line each. */
  async stop(settleMs?: number): Promise<string[]> {
    const left = await this.cleanUp(settleMs);
    this.gateway.close();
    return [...left, ...(await this.keeper.call("stopStack", this.info.id))];
  }

  /**
   * What happened since a moment, in milliseconds since 1970: the lines of both logs, and the calls to the engine where
   * they were seen; and its sandboxes as the engine has them now.
   */
  async excerpts(since: number): Promise<Pick<ScenarioResult, "logs" | "engine" | "engineCalls">> {
    const { logs, id } = this.info;
    const [engine, asked, floods] = await Promise.all([
      this.keeper.call("engineView", id).catch((error: Error) => [error.message]),
      this.keeper.call("engineCalls", id, since),
      this.keeper.call("floods"),
    ]);
    const lines = (who: "gateway" | "driver") => [
      ...floods.filter(({ name, stack }) => name === who && stack === id).map(floodWords),
      ...excerpt(logs[who], since, now()),
    ];
    const engineCalls = asked.map(
      ({ call, at, status }) => `${offset(at - since)}  ${shortIds(call)} → ${status ?? "no answer"}`,
    );
    return { logs: { gateway: lines("gateway"), driver: lines("driver") }, engine, engineCalls };
  }
}

/** A call to the engine with its containers' ids as Podman shows them. */
const shortIds = (call: string): string => call.replace(/[\da-f]{64}/g, (id) => id.slice(0, 12));
