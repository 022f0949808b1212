// SPDX-License-Identifier: Apache-2.0

/** What serves a socket on which a Podman API service was expected: the socket of another engine is easily named. */
import { clipped } from "../base/text.ts";

/** How long a server may take to answer, in milliseconds. */
const ANSWER_MS = 3_000;

interface Version {
  Version?: unknown;
  Platform?: { Name?: unknown } | null;
  Components?: { Name?: unknown; Version?: unknown }[] | null;
}

/**
 * Asks a server that takes connections who it is. `GET /version` is Docker's; Podman's compatible API has it, too, and
 * both send a header `Server: NAME/VERSION (linux)`.
 * @returns a phrase such as "Docker Engine 27.3.1", "an HTTP server that is not Podman", or "a server that never answers".
 */
export async function whatServes(socket: string, deadlineMs = ANSWER_MS): Promise<string> {
  const patienceMs = Math.min(deadlineMs, ANSWER_MS);
  let response: Response;
  let text: string;
  try {
    response = await fetch("http://engine/version", {
      unix: socket,
      signal: AbortSignal.timeout(patienceMs),
    });
    text = await response.text();
  } catch (error) {
    const { name, code } = error as Error & { code?: unknown };
    if (name === "TimeoutError") return `a server that does not answer within ${patienceMs} ms`;
    if (code === "ECONNRESET") return "a server that closes the connection without an answer";
    return "a server that does not speak HTTP";
  }
  const [, product = "", version = ""] =
    /^(docker|libpod)\/(\S+)/i.exec(response.headers.get("server") ?? "") ?? [];
  const told = versionOf(text);
  const components = Array.isArray(told?.Components) ? told.Components : [];
  const podman = components.find(({ Name }) => typeof Name === "string" && Name.startsWith("Podman"));
  const number = clipped(String(podman?.Version ?? told?.Version ?? version), 40);
  if (podman || product.toLowerCase() === "libpod") return `Podman ${number}`;
  const isDocker = product || String(told?.Platform?.Name ?? "").startsWith("Docker");
  return isDocker ? `Docker Engine ${number}` : "an HTTP server that is not Podman";
}

function versionOf(text: string): Version | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
}
