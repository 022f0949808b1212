// SPDX-License-Identifier: Apache-2.0

/**
 * The supervisor's own lines, on stderr and to the gateway.
 */
import type * as grpc from "@grpc/grpc-js";
import type { PushSandboxLogsRequest } from "../../proto/v0.0/types/openshell/v1/PushSandboxLogsRequest.ts";
import type { SandboxLogLine } from "../../proto/v0.0/types/openshell/v1/SandboxLogLine.ts";
import type { OpenShellClient } from "../../proto/v0.0/types/openshell/v1/OpenShell.ts";

const LOG_FLUSH = 100;

const LEVELS = ["trace", "debug", "info", "warn", "error"];

/** A gateway, as far as log lines go. */
interface Receiver {
  client: Pick<OpenShellClient, "pushSandboxLogs">;
  metadata(): grpc.Metadata;
}

/**
 * The supervisor's own lines: on stderr from `--log-level` on, and from info on to the gateway, which serves them with
 * the source "sandbox". Output of the user's processes is not among them, as with the real program.
 */
export class Log {
  #gateway: Receiver | undefined;
  #lines: SandboxLogLine[] = [];
  #call: grpc.ClientWritableStream<PushSandboxLogsRequest> | undefined;
  #timer: Timer | undefined;

  constructor(
    readonly sandboxId: string,
    readonly level: string,
  ) {}

  write(
    level: "debug" | "info" | "warn" | "error",
    message: string,
    fields: Record<string, string> = {},
  ): void {
    const time = Date.now();
    if (LEVELS.indexOf(level) >= LEVELS.indexOf(this.level.toLowerCase())) {
      const details = Object.entries(fields).map(([name, value]) => ` ${name}=${value}`);
      console.error(`${new Date(time).toISOString()} ${level.toUpperCase()} ${message}${details.join("")}`);
    }
    if (level === "debug" || this.#lines.length >= 200) return;
    this.#lines.push({
      sandbox_id: this.sandboxId,
      timestamp_ms: time,
      level: level.toUpperCase(),
      target: "openshell_sandbox",
      message,
      source: "sandbox",
      fields,
    });
    this.#timer ??= setTimeout(() => this.flush(), LOG_FLUSH);
    this.#timer.unref();
  }

  /** From now on lines go to the gateway too, those that wait first. */
  pushTo(gateway: Receiver): void {
    this.#gateway = gateway;
    this.flush();
  }

  /** Sends what waits. A lost line is not worth an error: logs never hold the sandbox up. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (!this.#gateway || this.#lines.length === 0) return;
    this.#call ??= this.#gateway.client.pushSandboxLogs(
      this.#gateway.metadata(),
      () => (this.#call = undefined),
    );
    this.#call.write({ sandbox_id: this.sandboxId, logs: this.#lines.splice(0) });
  }
}
