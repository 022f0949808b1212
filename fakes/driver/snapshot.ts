// SPDX-License-Identifier: Apache-2.0

/** What the gateway is told of a container. */
import type { DriverCondition } from "../../proto/v0.0/types/openshell/compute/v1/DriverCondition.ts";
import type { DriverSandbox } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import { LABEL } from "./names.ts";
import type { Inspect } from "./podman.ts";

export interface Identity {
  id: string;
  name: string;
  workspace: string;
}

/** Whose container it is; null if it is no sandbox. */
export function identity(labels: Record<string, string> | null | undefined): Identity | null {
  const { [LABEL.id]: id, [LABEL.name]: name = "", [LABEL.workspace]: workspace } = labels ?? {};
  return id && workspace !== undefined ? { id, name, workspace } : null;
}

/** The snapshot of a container; null if it is no sandbox. */
export function describe(container: Inspect): DriverSandbox | null {
  const who = identity(container.Config.Labels);
  return who && snapshot(who, container, readyCondition(container), container.State.Status === "removing");
}

/** The container is there, but the engine cannot say how it is. */
export const unsure = (who: Identity, container: { Id: string; Name: string }, error: Error): DriverSandbox =>
  snapshot(who, container, {
    status: "Unknown",
    reason: "InspectFailed",
    message: `Container inspect failed: ${error.message}`,
  });

export const hasExited = ({ State: { Status } }: Inspect): boolean =>
  Status === "exited" || Status === "stopped";

const snapshot = (
  { id, name, workspace }: Identity,
  container: { Id: string; Name: string },
  ready: DriverCondition,
  deleting = false,
): DriverSandbox => ({
  id,
  name,
  workspace,
  status: {
    sandbox_name: container.Name.replace(/^\//, ""),
    instance_id: container.Id.slice(0, 12),
    conditions: [{ type: "Ready", ...ready }],
    deleting,
  },
});

/** By what the engine's health check says. */
const RUNNING: Record<string, DriverCondition> = {
  healthy: { status: "True", reason: "HealthCheckPassed" },
  unhealthy: { status: "False", reason: "HealthCheckFailed" },
  starting: { status: "False", reason: "HealthCheckStarting" },
};

function readyCondition({ State: state }: Inspect): DriverCondition {
  switch (state.Status) {
    case "running":
    case "stopping": {
      const health = (state.Health ?? state.Healthcheck)?.Status ?? "";
      const ready = RUNNING[health] ?? { status: "False", reason: "ContainerStarting" };
      return { ...ready, last_transition_time: state.StartedAt };
    }
    case "created":
    case "configured":
    case "initialized":
      return { status: "False", reason: "ContainerCreated" };
    case "exited":
    case "stopped":
      return {
        status: "False",
        ...(state.OOMKilled
          ? { reason: "OOMKilled", message: "Container was killed by the OOM killer" }
          : { reason: "ContainerExited", message: `Container exited with code ${state.ExitCode}` }),
        last_transition_time: state.FinishedAt,
      };
    case "removing":
      return { status: "False", reason: "ContainerRemoving" };
    default:
      return { status: "Unknown", reason: "Unknown", message: `Unknown container state: ${state.Status}` };
  }
}
