// SPDX-License-Identifier: Apache-2.0

/**
 * A container engine without containers: the part of Podman's libpod REST API that a compute driver needs, where a
 * container is a process and its filesystem a folder. Needs no root, no Podman, no kernel feature.
 *
 *   bun fakes/engine.ts --root DIR system service --time=0 unix:///path/to/socket
 *
 * Shapes, codes, messages and the order of events are those of Podman 5.4.2. A program in such a container has no
 * other root directory than the host: OPENSHELL_FAKE_ROOT tells it where the container's files are (an absolute path
 * P of the container is the file OPENSHELL_FAKE_ROOT + P), OPENSHELL_FAKE_HOSTS what its host names mean.
 *
 * The parts: settings; server and api (http); images, volumes, secrets, networks (state, events); containers with
 * their mounts, and their lifecycle (program, processes); health, logs, inspect.
 */
import { readSettings, UsageError, VERSION } from "./engine/settings.ts";

const argv = process.argv.slice(2);
try {
  if (argv.includes("--version") || argv.includes("-v")) {
    console.log(`podman version ${VERSION}+fake`);
  } else {
    const settings = readSettings(argv);
    const { serve } = await import("./engine/server.ts");
    await serve(settings);
  }
} catch (error) {
  console.error(error instanceof UsageError ? `Error: ${error.message}` : error);
  process.exit(error instanceof UsageError ? 2 : 1);
}
