/** Child processes. They end with this process, even if it is interrupted. */
import { spawn } from 'node:child_process';

const running = new Set();

/** As `spawn`; `exited` of the result is a promise of `{ code, signal }`. */
export function startChild(command, args, options) {
  const child = spawn(command, args, options);
  running.add(child);
  child.exited = new Promise((resolve) => {
    child.once('close', (code, signal) => {
      running.delete(child);
      resolve({ code, signal });
    });
  });
  return child;
}

process.once('exit', () => running.forEach((child) => child.kill('SIGKILL')));
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, () => process.exit(1));
