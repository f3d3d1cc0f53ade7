-- Returns the next version of a partition, and the time in milliseconds, both as decimal text. Versions always grow, and
-- begin at the time in microseconds: a Redis that has lost its state continues above its former versions. They stay below
-- 2^53, where Lua's numbers are exact; `%.0f` never writes them as 1e+15.
local function next_version(key)
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local version = math.max(tonumber(redis.call('GET', key) or 0) + 1, now)
  local text = string.format('%.0f', version)
  redis.call('SET', key, text)
  return text, string.format('%.0f', math.floor(now / 1000))
end
