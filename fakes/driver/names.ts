// SPDX-License-Identifier: Apache-2.0

/** By which names the engine knows what belongs to a sandbox. */
import type { DriverSandbox__Output as Sandbox } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";

export const LABEL = {
  managed: "openshell.managed",
  id: "openshell.ai/sandbox-id",
  name: "openshell.ai/sandbox-name",
  namespace: "openshell.ai/sandbox-namespace",
  workspace: "openshell.ai/sandbox-workspace",
};

export const containerName = ({ workspace, name, id }: Sandbox): string =>
  `openshell-${workspace}--${name}-${id}`;

export const volumeName = (id: string): string => `openshell-sandbox-${id}-workspace`;

export const tokenSecret = (id: string): string => `openshell-token-${id}`;

/** Every secret that this or the first-party driver may have made for a sandbox. */
export const secretNames = (id: string): string[] => [
  tokenSecret(id),
  ...["proxy-auth", "tls-ca", "tls-cert", "tls-key"].map((kind) => `openshell-${kind}-${id}`),
];

/** Podman's rule for names; also what may stand in a URL's path unescaped. */
export function checkName(name: string, refuse: (message: string) => never): void {
  if (name === "") refuse("name must not be empty");
  if (name.length > 255) refuse(`name exceeds maximum length of 255 characters (got ${name.length})`);
  if (!/^[a-zA-Z0-9]/.test(name)) {
    refuse(`name must start with an alphanumeric character: ${JSON.stringify(name)}`);
  }
  if (!/^[a-zA-Z0-9._-]+$/.test(name)) refuse(`name contains invalid characters: ${JSON.stringify(name)}`);
}
