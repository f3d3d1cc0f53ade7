-- A group as it is: `Truth::look`.
--
-- KEYS: holders, version, members of the group
local version = redis.call('GET', KEYS[2])
if not version then
  return { 'done', '0', 0, false }
end
return { 'done', version, redis.call('EXISTS', KEYS[1]), redis.call('HGETALL', KEYS[3]) }
