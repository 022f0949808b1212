// SPDX-License-Identifier: Apache-2.0

/** The form of what crosses a keeper's control socket: one JSON object a line. */

/** One message of a control socket; empty when the line holds none, as when its writer was killed half-way. */
export function parseLine<Message extends object>(line: string): Partial<Message> {
  try {
    const parsed: unknown = JSON.parse(line);
    return typeof parsed === "object" && parsed !== null ? parsed : {};
  } catch {
    return {};
  }
}
