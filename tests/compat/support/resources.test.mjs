import assert from 'node:assert/strict';
import { test } from 'node:test';
import { closeWith } from './resources.mjs';

/** An owner, and the order in which its resources were closed. */
function owner() {
  const closed = [];
  const owner = {
    after(close) {
      owner.end = close;
    },
  };
  const open = (name, close = () => {}, ...rest) =>
    closeWith(owner, name, () => {
      closed.push(name);
      return close();
    }, ...rest);
  return { closed, open, end: () => owner.end() };
}

test('resources are closed with their owner, the newest first', async () => {
  const { closed, open, end } = owner();
  open('server');
  open('client');
  await end();
  assert.deepEqual(closed, ['client', 'server']);
});

test('a close that fails or exceeds its time limit does not keep the others from being closed', async () => {
  const { closed, open, end } = owner();
  open('server');
  open('client', () => {
    throw new Error('client is broken');
  });
  open('process', () => new Promise(() => {}), 50);
  await assert.rejects(end(), { message: 'process was not closed within 50 ms\nclient is broken' });
  assert.deepEqual(closed, ['process', 'client', 'server']);
});

test('a resource that is opened after its owner has ended is closed at once', async () => {
  const { closed, open, end } = owner();
  open('server');
  await end();
  assert.throws(() => open('client'), /client was opened after its test had ended/);
  assert.deepEqual(closed, ['server', 'client']);
});
