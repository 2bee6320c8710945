// Marks the cells of tables that hold numbers with their intervals and units, such as ".321 ± .012" or "+1.2% [-0.3%, 2.7%]".
for (const cell of document.querySelectorAll("td"))
  if (/^[-+−±.\d]/.test(cell.textContent) && !/[A-Za-z]{4}/.test(cell.textContent) && cell.textContent.length < 40)
    cell.classList.add("number");
