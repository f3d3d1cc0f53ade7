-- Returns the state of a group: `SharedState::snapshot`.
--
-- KEYS: holders, version, members of the group
local version = redis.call('GET', KEYS[2])
if not version then
  return { 'ok', '0', 0, false }
end
return { 'ok', version, redis.call('EXISTS', KEYS[1]), redis.call('HGETALL', KEYS[3]) }
